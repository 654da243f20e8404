"""The client counts whole streams, and calls anything else an error."""

from __future__ import annotations

import re
import time

from benchmarks.mock_backend import make_answers, serve
from benchmarks.stream_client import Load, Stream, percentile, run

_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def make_load(port: int, *, connections: int = 2) -> Load:
    return Load(
        port=port, model="mock", connections=connections, seconds=0.1, warm_up_s=0.0, seed=1
    )


async def test_it_counts_the_streams_of_a_server() -> None:
    servers = await serve(make_answers(), port=0)
    port = servers[0].sockets[0].getsockname()[1]

    seen = await run(make_load(port), check_usage=False)

    assert seen["errors"] == 0
    assert isinstance(seen["streams"], int)
    assert seen["streams"] > 0
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_a_stream_without_usage_is_an_error() -> None:
    servers = await serve(make_answers(), port=0)
    port = servers[0].sockets[0].getsockname()[1]

    seen = await run(make_load(port, connections=1))

    assert seen["streams"] == 0
    assert "no usage" in str(seen["first_error"])
    for server in servers:
        server.close()
        await server.wait_closed()


def test_prompts_share_no_beginning() -> None:
    load = make_load(8000)

    first, second = (load.request(0, index).split(b'"prompt": "')[1] for index in (1, 2))

    assert first[:1] != second[:1]


def test_a_stream_is_whole_at_its_last_chunk_only() -> None:
    stream = Stream(sent_s=time.perf_counter())

    assert not stream.add(_HEAD)
    assert not stream.first_s
    assert not stream.add(b'a\r\ndata: {"a": 1}\n\n\r\n')
    assert stream.first_s
    assert stream.add(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    assert stream.problem(re.compile(b"")) is None


def test_an_error_answer_is_told_from_a_stream() -> None:
    stream = Stream(sent_s=0.0)

    assert stream.add(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy")
    assert "503" in str(stream.problem(re.compile(b"")))


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 99) == 4.0
    assert percentile([], 50) == 0.0
