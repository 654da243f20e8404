"""HTTP as clients speak it: paths and methods, limits, old and odd clients."""

from __future__ import annotations

import json

import pytest

from aibrix_ray.dataplane import FORWARDED_PATHS
from aibrix_ray.dataplane.wire import MULTIPART_PATHS
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, chunk, event
from tests.dataplane.clients import CHAT, head
from tests.dataplane.forms import CONTENT_TYPE, TRANSCRIBE, field, form
from tests.dataplane.gateways import MakeGateway

BODY = b'{"model": "m"}'


@pytest.mark.parametrize("path", sorted(FORWARDED_PATHS))
async def test_every_path_of_the_list_is_forwarded(
    backend: MakeBackend, gateway: MakeGateway, path: str
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    if path in MULTIPART_PATHS:
        client.post(form(field("model", b"m")), path, f"content-type: {CONTENT_TYPE}")
    else:
        client.post(BODY, path)
    assert (await client.answer()).status == 200
    assert replica.calls[0].path == path


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/chat",
        "/v1/chat/completions/",
        "/V1/chat/completions",
        "/v2/chat/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/sleep",
        "/wake_up",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/start_profile",
        "/invocations",
        "/v1/chat/../load_lora_adapter",
        "//v1/chat/completions",
        "/v1/chat/completions%00",
    ],
)
async def test_any_other_path_never_reaches_a_replica(
    backend: MakeBackend, gateway: MakeGateway, path: str
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    client.post(BODY, path)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert replica.calls == []


async def test_an_escaped_path_is_the_path_it_stands_for(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    client.post(BODY, "/v1/chat%2Fcompletions")
    assert (await client.answer()).status == 200
    assert replica.calls[0].path == CHAT


METHODS = {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"}
WRONG = [
    (path, method)
    for path in (CHAT, TRANSCRIBE, "/v1/models", "/metrics", "/-/healthz")
    for method in sorted(METHODS - {"POST" if path in FORWARDED_PATHS else "GET"})
]


@pytest.mark.parametrize(("path", "method"), WRONG)
async def test_a_wrong_method_is_405(gateway: MakeGateway, path: str, method: str) -> None:
    client = await (await gateway()).connect()
    client.get(path, method=method)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")


async def test_head_is_answered_without_a_body_and_the_connection_goes_on(
    gateway: MakeGateway,
) -> None:
    client = await (await gateway()).connect()
    for path, status in (("/healthz", 200), ("/-/healthz", 200), (CHAT, 405), ("/none", 404)):
        client.get(path, method="HEAD")
        assert (await client.answer("HEAD")).status == status
    client.get("/healthz")
    assert (await client.answer()).json() == {"status": "ok"}


async def test_one_connection_carries_many_requests(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    running = await gateway([replica])
    client = await running.connect()
    for i in range(5):
        client.post({"model": "m", "i": i})
        assert (await client.answer()).json()["i"] == i
        client.get("/v1/models")
        assert (await client.answer()).status == 200
    assert replica.connections == len(running.server.connections) == 1


async def test_connection_close_is_honoured(backend: MakeBackend, gateway: MakeGateway) -> None:
    client = await (await gateway([await backend()])).connect()
    client.post(BODY, CHAT, "connection: close")
    answer = await client.answer()
    assert answer.header("connection") == "close"
    assert await client.rest() == b""


async def test_an_http_1_0_client_gets_a_length_or_the_end_of_the_connection(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        if b"stream" not in call.body:
            return await call.answer(call.body)
        await call.begin(SSE)
        await call.write(event("a"))
        await call.end(DONE)

    running = await gateway([await backend(handler)])
    plain = await running.connect()
    plain.post(BODY, version="1.0")
    answer = await plain.answer()
    assert (answer.body, answer.header("connection")) == (BODY, "close")
    assert await plain.rest() == b""
    streamed = await running.connect()
    streamed.post(b'{"model": "m", "stream": true}', version="1.0")
    answer = await streamed.answer()
    assert not answer.chunked
    assert answer.body == event("a") + DONE


async def test_pipelined_requests_are_answered_in_order(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    for i in range(5):
        client.post({"model": "m", "i": i})
    client.get("/healthz")
    assert [(await client.answer()).json()["i"] for _ in range(5)] == list(range(5))
    assert (await client.answer()).json() == {"status": "ok"}


async def test_a_client_that_asks_whether_to_continue_is_told_so(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    client = await (await gateway([await backend()])).connect()
    for _ in range(2):
        client.send(head("POST", CHAT, "expect: 100-continue", f"content-length: {len(BODY)}"))
        assert (await client.head()).status == 100
        client.send(BODY)
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, BODY)


NOT_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a word": b"hello\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nhost\r\n\r\n",
    "a bad length": b"POST / HTTP/1.1\r\ncontent-length: ten\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length and chunks": b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked"
    b"\r\n\r\n0\r\n\r\n",
    "a bad chunk": head("POST", CHAT, "transfer-encoding: chunked") + b"zz\r\n",
    "a line break in a header": b"GET / HTTP/1.1\r\nx: a\nb: c\r\n\r\n",
    "a NUL in a header": b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
    "a raw byte in the path": "GET /é HTTP/1.1\r\n\r\n".encode(),
    "no path": b"GET ?a HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_what_is_not_http_is_answered_in_json_and_the_connection_ends(
    backend: MakeBackend, gateway: MakeGateway, data: bytes
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    client.send(data)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (400, "invalid_http")
    assert answer.header("connection") == "close"
    assert await client.rest() == b""
    assert replica.calls == []


@pytest.mark.parametrize("upload", ["with a length", "chunked", "a form"])
async def test_a_body_that_is_too_large_is_413_and_the_client_can_read_that(
    backend: MakeBackend, gateway: MakeGateway, upload: str
) -> None:
    replica = await backend()
    running = await gateway([replica], args={"max_body_bytes": 100_000})
    client = await running.connect()
    pieces = [bytes(100_000)] * 40
    if upload == "chunked":
        client.send(head("POST", CHAT, "transfer-encoding: chunked"))
        pieces = [chunk(piece) for piece in pieces] + [b"0\r\n\r\n"]
    elif upload == "with a length":
        client.send(head("POST", CHAT, "content-length: 4000000"))
    else:
        opening = field("file", b"")[:-2]
        length = f"content-length: {4_000_000 + len(opening)}"
        client.send(head("POST", TRANSCRIBE, length, f"content-type: {CONTENT_TYPE}") + opening)
    for piece in pieces:  # it writes all before it reads
        client.send(piece)
        await client.flush()
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert "100000 bytes" in answer.error["message"]
    assert answer.header("connection") == "close"
    assert await client.rest() == b""
    assert replica.calls == []
    await running.until_ended("rejected", 413, model="")


async def test_a_body_of_the_largest_size_is_served(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()], args={"max_body_bytes": 1024})
    client = await running.connect()
    body = b'{"model": "m", "x": "' + b"x" * 1001 + b'"}'
    assert len(body) == 1024
    client.post(body)
    assert (await client.answer()).body == body
    client.post(body + b" ")
    assert (await client.answer()).status == 413


@pytest.mark.parametrize("path", ["/none", "/healthz"])
async def test_a_body_that_nobody_reads_does_not_disturb_the_next_request(
    gateway: MakeGateway, path: str
) -> None:
    client = await (await gateway()).connect()
    client.post(json.dumps({"x": "y" * 500_000}).encode(), path)
    assert (await client.answer()).status in (404, 405)
    client.get("/healthz")
    assert (await client.answer()).status == 200


async def test_an_absolute_target_means_its_path(gateway: MakeGateway) -> None:
    client = await (await gateway()).connect()
    client.get("http://elsewhere/healthz")
    assert (await client.answer()).status == 200


async def test_an_offer_of_http2_is_declined_and_the_request_served(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    client = await (await gateway([await backend()])).connect()
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAA")
    for _ in range(2):  # what Java's HttpClient and `curl --http2` send first
        client.get("/healthz", *offer)
        assert (await client.answer()).status == 200
    client.post(BODY, CHAT, *offer)
    assert (await client.answer()).body == BODY


async def test_a_request_in_many_packets_is_one_request(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    client = await (await gateway([await backend()])).connect()
    data = head("POST", CHAT, f"content-length: {len(BODY)}") + BODY
    for i in range(len(data)):
        client.send(data[i : i + 1])
        await client.flush()
    assert (await client.answer()).body == BODY
