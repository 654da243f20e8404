"""Open-loop clients send whether they are answered or not, and tell answers from refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from benchmarks.mock_backend import make_answers, serve
from benchmarks.open_loop import Load, run

_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n"


def make_load(port: int, **changes: Any) -> Load:
    size = {"seconds": 0.3, "warm_up_s": 0.0, "max_tokens": 32, **changes}
    return Load(port=port, model="mock", **size)


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    servers = await serve(make_answers(), port=0)
    yield servers[0].sockets[0].getsockname()[1]
    for server in servers:
        server.close()
        await server.wait_closed()


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(head + b"connection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_arrivals_come_at_about_the_rate_and_every_answer_is_counted(port: int) -> None:
    seen = await run(make_load(port, rate_per_s=200.0))

    assert isinstance(seen["offered"], int)
    assert 20 < seen["offered"] < 140  # Poisson, 60 on average
    assert seen["statuses"] == {"200": seen["offered"]}
    assert (seen["refused"], seen["timeouts"], seen["broken"]) == (0, 0, 0)


async def test_the_same_seed_sends_as_many(port: int) -> None:
    first, second = [await run(make_load(port, rate_per_s=100.0, seed=3)) for _ in range(2)]

    assert abs(int(str(first["offered"])) - int(str(second["offered"]))) <= 2


async def test_a_closed_loop_keeps_asking(port: int) -> None:
    seen = await run(make_load(port, clients=2))

    assert float(str(seen["goodput_per_s"])) > 0
    assert seen["broken"] == 0


async def test_refusals_are_told_apart_by_their_retry_after() -> None:
    heads = iter([_REFUSAL, _REFUSAL + b"retry-after: 1\r\n"])
    server = await asyncio.start_server(
        lambda reader, writer: refuse(reader, writer, next(heads, _REFUSAL)), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]

    seen = await run(make_load(port, rate_per_s=50.0))

    assert isinstance(seen["refused"], int)
    assert seen["refused"] > 1
    assert seen["refused_without_retry_after"] == seen["refused"] - 1
    server.close()
    await server.wait_closed()


async def test_a_server_that_closes_without_a_word_is_told() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    seen = await run(make_load(port, rate_per_s=50.0))

    assert seen["broken"] == seen["offered"]
    assert seen["first_problem"]
    server.close()
    await server.wait_closed()
