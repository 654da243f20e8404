"""The mock backend speaks HTTP and OpenAI's shapes right; how fast it is, the benchmark tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from benchmarks.mock_backend import content_length, make_answers, serve

_CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hello"}]}
_COMPLETION = {"model": "mock", "prompt": "hello"}


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    servers = await serve(make_answers(), port=0)
    yield servers[0].sockets[0].getsockname()[1]
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest_asyncio.fixture
async def client(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as opened:
        yield opened


def events_of(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", _CHAT), ("/v1/completions", _COMPLETION)]
)
class TestGeneration:
    async def test_a_plain_answer_is_one_json_object_with_usage(
        self, client: httpx.AsyncClient, path: str, body: dict[str, object]
    ) -> None:
        response = await client.post(path, json=body)

        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        assert answer["usage"]["completion_tokens"] == 32
        assert answer["choices"][0]["finish_reason"] == "length"

    async def test_a_stream_is_32_events_and_done(
        self, client: httpx.AsyncClient, path: str, body: dict[str, object]
    ) -> None:
        response = await client.post(path, json={**body, "stream": True})

        assert response.headers["transfer-encoding"] == "chunked"
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, done = events_of(response.text)
        assert done == "[DONE]"
        reasons = [json.loads(event)["choices"][0]["finish_reason"] for event in events]
        assert reasons == [None] * 31 + ["length"]

    async def test_one_connection_serves_streams_and_plain_answers_in_turn(
        self, client: httpx.AsyncClient, path: str, body: dict[str, object]
    ) -> None:
        for stream in (True, False, True):
            response = await client.post(path, json={**body, "stream": stream})
            assert response.status_code == 200
            assert response.text.endswith("[DONE]\n\n") == stream


async def test_models_health_and_unknown_paths(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()

    assert [model["id"] for model in models["data"]] == ["mock"]
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/nothing")).status_code == 404


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_request_split_over_packets_is_read_to_its_end(port: int, size: int) -> None:
    body = json.dumps({**_CHAT, "stream": False}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\ncOntent-lEngth: %d\r\n\r\n" % len(
        body
    )
    request = head + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    for start in range(0, len(request), size):
        assert not reader._buffer, "answered before the request was whole"  # type: ignore[attr-defined]
        writer.write(request[start : start + size])
        await writer.drain()
        await asyncio.sleep(0)  # a turn of the loop, so that the mock sees this piece alone
    status = await reader.readline()

    assert status == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    await writer.wait_closed()


async def test_requests_that_arrive_together_are_answered_in_order(port: int) -> None:
    stream = json.dumps({**_CHAT, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(stream)
    last = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    writer.write(head + stream + last)
    everything = await asyncio.wait_for(reader.read(), timeout=10)

    streamed, _, health = everything.partition(b"0\r\n\r\n")
    assert streamed.count(b"data: ") == 33
    assert health.startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()


async def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "mock.sock"
    servers = await serve(make_answers("other"), uds=path)
    transport = httpx.AsyncHTTPTransport(uds=str(path))

    async with httpx.AsyncClient(transport=transport, base_url="http://mock") as client:
        response = await client.post("/v1/completions", json=_COMPLETION)

    assert response.json()["model"] == "other"
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"GET / HTTP/1.1\r\nHost: x", 0),
        (b"POST / HTTP/1.1\r\nContent-Length: 12", 12),
        (b"POST / HTTP/1.1\r\ncontent-length:7\r\nHost: x", 7),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked", None),
    ],
)
def test_the_length_of_a_body_is_read_from_the_head(head: bytes, length: int | None) -> None:
    assert content_length(head) == length
