"""What the official client is told when a replica fails it: one rule, one code each (U04)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import Address
from tests.conformance.requests import MODEL, chat
from tests.dataplane.backends import Peer, RawBackend
from tests.dataplane.gateways import Gateway

Script = Callable[[Peer], Coroutine[Any, Any, None]]
Ask = Callable[[Script | None], Coroutine[Any, Any, AsyncOpenAI]]


@pytest.fixture
async def behind() -> AsyncIterator[Ask]:
    """Return the official client of a gateway whose one replica runs a script; `None`: refuses."""
    ends: list[Callable[[], Coroutine[Any, Any, None]]] = []
    with tempfile.TemporaryDirectory(prefix="ab-", dir="/tmp") as folder:

        async def start(script: Script | None) -> AsyncOpenAI:
            uds = str(Path(folder, "r.sock"))
            if script is not None:
                backend = RawBackend(script, uds=uds)
                await backend.start()
                ends.append(backend.kill)
            model = {
                "first_byte_timeout_s": 0.2,
                "idle_timeout_s": 0.2,
                "wait_for_replica_s": 0.1,
                "max_attempts": 2,
            }
            gateway = Gateway(
                {MODEL: [Address(uds=uds)]},
                user_config=GatewayUserConfig.model_validate({"models": {MODEL: model}}),
                args=GatewayArgs(),
                max_outstanding=512,
            )
            await gateway.start()
            ends.append(gateway.close)
            client = AsyncOpenAI(
                base_url=f"http://127.0.0.1:{gateway.port}/v1",
                api_key="any",
                max_retries=0,
                http_client=DefaultAsyncHttpxClient(trust_env=False),
            )
            ends.append(client.close)
            return client

        yield start
        for end in reversed(ends):
            await end()


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.reader.read()


async def silent_after_the_head(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
    await peer.reader.read()


async def closing(peer: Peer) -> None:
    await peer.request()


async def closing_after_the_head(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")


async def talking_nonsense(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"what?\r\n\r\n")


@pytest.mark.parametrize(
    ("script", "statuses", "codes"),
    [
        (silent, {504}, {"deadline_exceeded"}),
        (silent_after_the_head, {504}, {"deadline_exceeded"}),
        (closing, {502, 503}, {"replica_failed", "no_ready_replica"}),
        (closing_after_the_head, {502, 503}, {"replica_failed", "no_ready_replica"}),
        (talking_nonsense, {502, 503}, {"replica_failed", "no_ready_replica"}),
        (None, {502, 503}, {"replica_failed", "no_ready_replica"}),
    ],
    ids=["slow", "slow after the head", "closes", "closes after the head", "nonsense", "refuses"],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_u04_a_failure_before_the_answer_has_one_status_and_one_code(
    behind: Ask, script: Script | None, statuses: set[int], codes: set[str], streamed: bool
) -> None:
    """U04: slow, closing and refusing replicas; neighbours: after the head, and what is no HTTP."""
    client = await behind(script)
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(**chat(stream=streamed))
    assert failed.value.status_code in statuses
    assert failed.value.code in codes
    assert failed.value.response.headers["content-type"] == "application/json"
    assert isinstance(failed.value.body, dict)
    assert failed.value.body.keys() == {"message", "type", "param", "code"}


CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": []}


async def one_chunk(peer: Peer) -> None:
    await peer.request()
    await peer.begin_stream()
    await peer.chunk(b"data: " + json.dumps(CHUNK).encode() + b"\n\n")


async def one_chunk_then_silence(peer: Peer) -> None:
    await one_chunk(peer)
    await peer.reader.read()


@pytest.mark.parametrize(
    ("script", "code"),
    [(one_chunk, "replica_failed"), (one_chunk_then_silence, "deadline_exceeded")],
)
async def test_u04_a_stream_that_breaks_ends_with_its_code(
    behind: Ask, script: Script, code: str
) -> None:
    """U04: the status has gone out; the official client raises what the error event says."""
    client = await behind(script)
    stream = await client.chat.completions.create(**chat(stream=True))
    with pytest.raises(openai.APIError) as failed:
        _ = [chunk async for chunk in stream]
    assert failed.value.code == code


async def test_u04_a_plain_answer_that_breaks_is_never_whole(behind: Ask) -> None:
    """U04: half of a body behind a 200 must not read as an answer."""

    async def half(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n" + b" " * 400_000)

    client = await behind(half)
    with pytest.raises((openai.APIConnectionError, openai.InternalServerError, httpx.HTTPError)):
        await client.chat.completions.create(**chat())
