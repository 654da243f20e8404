"""Bodies and answers pass byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataplane.backends import JSON, Backend, Call, MakeBackend, MakeRawBackend, Peer, chunk
from tests.dataplane.clients import CHAT, head
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.waiting import eventually

MEGABYTE = 1024 * 1024

BODIES = {
    "whitespace": b' \n\t{ "model"\r\n:  "m" ,\n "temperature": 1.0 }  \n',
    "unicode escapes": rb'{"model": "m", "prompt": "\u00e9\ud83d\ude00\u0000\/\""}',
    "raw unicode": '{"model": "m", "prompt": "é😀\u2028"}'.encode(),
    "an escaped key": rb'{"\u006dodel": "m", "\u0078": 1}',
    "duplicate unknown keys": b'{"x": 1, "model": "m", "x": 2, "x": 1}',
    "a duplicate model": b'{"model": "other", "model": "m"}',
    "big numbers": b'{"model": "m", "seed": 123456789012345678901234567890, "y": 1e400}',
    "exact decimals": b'{"model": "m", "temperature": 0.10000000000000000001, "z": -0.0}',
    "unknown fields": b'{"model": "m", "vendor": {"deep": [[[{}]]]}, "nvext": null, "": 0}',
    "wrong types": b'{"model": "m", "stream": "yes", "max_tokens": "ten", "user": 7}',
    "every field that is read": b'{"model": "m", "max_tokens": 5, "max_completion_tokens": 6, '
    b'"user": "u", "messages": [{"role": "user"}], "prompt": [1, 2], "input": "x"}',
    "200 levels": b'{"model": "m", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_valid_body_arrives_byte_for_byte(
    backend: MakeBackend, gateway: MakeGateway, body: bytes
) -> None:
    replica = await backend()
    answer = await (await gateway([replica])).http.post(CHAT, content=body)
    assert answer.status_code == 200
    assert replica.calls[0].body == body
    assert answer.content == body


@pytest.fixture
async def echoing(backend: MakeBackend, gateway: MakeGateway) -> tuple[Gateway, Backend]:
    replica = await backend()
    return await gateway([replica]), replica


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    fields=st.dictionaries(st.text(max_size=12).filter(lambda k: k != "model"), VALUES, max_size=5),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1, "\t"]),
    model_last=st.booleans(),
)
async def test_any_json_object_arrives_byte_for_byte(
    echoing: tuple[Gateway, Backend],
    fields: dict[str, Any],
    ascii_only: bool,
    indent: str | int | None,
    model_last: bool,
) -> None:
    ordered = {**fields, "model": "m"} if model_last else {"model": "m", **fields}
    body = json.dumps(ordered, ensure_ascii=ascii_only, indent=indent).encode(
        "utf-8", "surrogatepass" if ascii_only else "replace"
    )
    running, replica = echoing
    answer = await running.http.post(CHAT, content=body)
    assert answer.status_code == 200, answer.text
    assert replica.calls[-1].body == body
    assert answer.content == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(range(256)) * 5,
        b'{"choices":[{"text":"\\u00e9 \xc3\xa9"}], "x" : 1e400 }\r\n',
        b"\r\n\r\ndata: not an event\n\n: aibrix {}\n\n",
    ],
    ids=["empty", "binary", "json", "looks like a stream"],
)
async def test_an_answer_arrives_byte_for_byte(
    backend: MakeBackend, gateway: MakeGateway, body: bytes
) -> None:
    async def handler(call: Call) -> None:
        await call.answer(body, headers=[(b"content-type", b"application/octet-stream")])

    answer = await (await gateway([await backend(handler)])).post()
    assert answer.content == body
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(body))


async def test_a_compressed_answer_is_not_touched(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    compressed = gzip.compress(b'{"choices": []}', mtime=0)

    async def handler(call: Call) -> None:
        await call.answer(compressed, headers=[JSON, (b"content-encoding", b"gzip")])

    client = await (await gateway([await backend(handler)])).connect()
    client.post({"model": "m"})
    answer = await client.answer()
    assert answer.header("content-encoding") == "gzip"
    assert answer.body == compressed


@pytest.mark.parametrize("status", [200, 201, 400, 404, 422, 429, 500, 503])
async def test_the_replicas_own_status_and_error_body_reach_the_client(
    backend: MakeBackend, gateway: MakeGateway, status: int
) -> None:
    body = b'{"error": {"message": "top_p", "type": "t", "param": "top_p", "code": 400}}'

    async def handler(call: Call) -> None:
        await call.answer(body, status=status, headers=[JSON])

    running = await gateway([await backend(handler), await backend(handler)])
    answer = await running.post()
    assert (answer.status_code, answer.content) == (status, body)
    ending = {2: "completed", 4: "client_error", 5: "failed"}[status // 100]
    await running.until_ended(ending, status)


async def test_an_answer_without_a_body_keeps_its_status(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 204 No Content\r\nx-model: m\r\n\r\n")
        await peer.request()
        await peer.answer(b"second")

    running = await gateway([await raw_backend(script)])
    client = await running.connect()
    client.post({"model": "m"})
    answer = await client.answer()
    assert (answer.status, answer.body, answer.header("x-model")) == (204, b"", "m")
    client.post({"model": "m"})
    assert (await client.answer()).body == b"second"


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
async def test_a_large_answer_streams_through_intact(
    backend: MakeBackend, gateway: MakeGateway, chunked: bool
) -> None:
    body = bytes(range(256)) * (5 * MEGABYTE // 256)

    async def handler(call: Call) -> None:
        if not chunked:
            return await call.answer(body)
        await call.begin()
        for start in range(0, len(body), 100_000):
            await call.write(body[start : start + 100_000])
        await call.end()

    answer = await (await gateway([await backend(handler)])).post()
    assert answer.content == body
    assert ("content-length" in answer.headers) is not chunked


async def test_a_slow_client_bounds_what_the_gateway_holds(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    piece = bytes(range(256)) * 256
    pieces = 64 * MEGABYTE // len(piece)
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(pieces):
            await peer.chunk(piece)
            sent += 1
        await peer.end_stream()

    running = await gateway([await raw_backend(script)])
    client = await running.connect(receive_buffer_bytes=65536)
    client.post({"model": "m"})
    await client.head()
    await _settled(lambda: sent)
    assert 0 < sent * len(piece) < 16 * MEGABYTE
    received = 0
    while data := await client.chunk():
        received += len(data)
    assert received == pieces * len(piece)


async def _settled(value: Any) -> None:
    """Return once a value has stopped to change for a while."""
    seen, same = value(), 0
    while same < 50:
        await asyncio.sleep(0.002)
        seen, same = value(), same + 1 if value() == seen else 0


@pytest.mark.parametrize(
    "query", ["a=1&b=2", "a=%2F%20&a=+", "model=other", "x=é".encode().decode("latin-1"), "=&&"]
)
async def test_the_query_string_is_kept_as_it_came(
    backend: MakeBackend, gateway: MakeGateway, query: str
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    path = f"{CHAT}?{query}".encode("latin-1")
    body = b'{"model": "m"}'
    client.send(b"POST %b HTTP/1.1\r\nhost: g\r\ncontent-length: 14\r\n\r\n" % path + body)
    answer = await client.answer()
    if not query.isascii():
        assert answer.status == 400
        return
    assert replica.calls[0].query == query.encode()
    assert (replica.calls[0].path, replica.calls[0].method) == (CHAT, "POST")


@pytest.mark.parametrize("size", [70_000, 3 * MEGABYTE])
async def test_a_long_prompt_arrives_byte_for_byte(
    backend: MakeBackend, gateway: MakeGateway, size: int
) -> None:
    body = b'{"model": "m", "prompt": "' + b"x" * size + b'"}'
    replica = await backend()
    answer = await (await gateway([replica])).http.post(CHAT, content=body)
    assert answer.content == replica.calls[0].body == body


async def test_a_chunked_upload_arrives_whole_and_with_a_length(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    client.send(head("POST", CHAT, "transfer-encoding: chunked", "content-type: application/json"))
    for piece in (b'{"mod', b'el": ', b'"m"}'):
        client.send(chunk(piece))
        await client.flush()
    client.send(b"0\r\n\r\n")
    assert (await client.answer()).body == b'{"model": "m"}'
    call = replica.calls[0]
    assert call.header(b"content-length") == b"14"
    assert call.header(b"transfer-encoding") is None


async def test_simultaneous_requests_get_their_own_answers(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await release.wait()
        await call.answer(call.body)

    replicas = [await backend(handler), await backend(handler, tcp=True)]
    running = await gateway(replicas)
    posts = [asyncio.create_task(running.post({"model": "m", "i": i})) for i in range(40)]
    await eventually(lambda: sum(len(r.calls) for r in replicas) == 40, "all 40 under way")
    assert len(running.app.forwarder.under_way) == 40
    assert [len(r.calls) for r in replicas] == [20, 20]
    release.set()
    answers = [await post for post in posts]
    assert [a.json()["i"] for a in answers] == list(range(40))
