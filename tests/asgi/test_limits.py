"""What a connection may not do, and what its client is told."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator

import pytest

from aibrix_ray.asgi import ON_DISCONNECT, Receive, Scope, Send, connections_possible
from tests.asgi.conftest import MakeServer, echo
from tests.dataplane.clients import RawClient, head
from tests.dataplane.waiting import eventually, within


async def refused(client: RawClient, status: int, code: str) -> None:
    """Check that the client is told so, in OpenAI's shape, and that the connection ends."""
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.header("connection") == "close"
    assert await client.rest() == b""


# Sizes

HEADERS = {
    "many": b"".join(b"x-%d: y\r\n" % i for i in range(300)),
    "one": b"x: " + b"y" * 5000 + b"\r\n",
    "a name": b"x" * 5000 + b": y\r\n",
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("reads", ["one read", "many reads", "never ends"])
async def test_a_head_that_is_too_large_is_431(
    serve: MakeServer, headers: bytes, reads: str
) -> None:
    running = await serve(max_header_bytes=4096)
    client = await running.connect()
    data = b"GET / HTTP/1.1\r\n" + headers * (1 if reads != "never ends" else 40)
    data += b"" if reads == "never ends" else b"\r\n"
    size = len(data) if reads == "one read" else 1000
    for start in range(0, len(data), size):
        client.send(data[start : start + size])
        await client.flush()
    await refused(client, 431, "headers_too_large")
    assert running.server.refusals == {"headers_too_large": 1}


async def test_a_head_of_just_the_allowed_size_is_served(serve: MakeServer) -> None:
    running = await serve(max_header_bytes=4096)
    client = await running.connect()
    line = b"GET / HTTP/1.1\r\n"
    for padding in (4096 - 1 - 5, 4096 - 1 - 5 + 1):  # the target, and `x: ` with its line's end
        client.send(line + b"x: " + b"y" * padding + b"\r\n\r\n")
        answer = await client.answer()
        assert answer.status == (200 if padding == 4090 else 431)


async def test_a_large_body_does_not_count_as_head(serve: MakeServer) -> None:
    client = await (await serve(max_header_bytes=1024)).connect()
    body = b"x" * 300_000
    for _ in range(3):
        client.post(body, "/")
        assert (await client.answer()).body == body


async def test_a_small_head_behind_a_large_body_is_served(serve: MakeServer) -> None:
    client = await (await serve(max_header_bytes=1024)).connect()
    second = head("GET", "/", "x: y")
    client.send(head("POST", "/", "content-length: 2000") + b"x" * 2000 + second[:20])
    assert len((await client.answer()).body) == 2000
    client.send(second[20:])
    assert (await client.answer()).status == 200


@pytest.mark.parametrize("reads", ["one read", "many reads"])
async def test_a_target_that_is_too_long_is_414(serve: MakeServer, reads: str) -> None:
    client = await (await serve(max_url_bytes=512)).connect()
    data = head("GET", "/" + "a" * 512)
    for start in range(0, len(data), 100 if reads == "many reads" else len(data)):
        client.send(data[start : start + (100 if reads == "many reads" else len(data))])
        await client.flush()
    await refused(client, 414, "uri_too_long")


async def test_trailers_reach_nobody_and_may_not_be_large(serve: MakeServer) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        seen.extend(name for name, _ in scope["headers"])

    client = await (await serve(app, max_header_bytes=1024)).connect()
    client.send(
        head("POST", "/", "transfer-encoding: chunked") + b"1\r\na\r\n0\r\nx-late: 1\r\n\r\n"
    )
    assert (await client.answer()).body == b"a"
    assert seen == [b"host", b"transfer-encoding"]
    client.send(head("POST", "/", "transfer-encoding: chunked") + b"1\r\na\r\n0\r\n")
    for _ in range(20):
        client.send(b"x-late: " + b"y" * 100 + b"\r\n")
        await client.flush()
    await refused(client, 431, "headers_too_large")


async def test_a_large_body_that_is_announced_is_refused_before_it_is_sent(
    serve: MakeServer,
) -> None:
    client = await (await serve(max_body_bytes=1000)).connect()
    client.send(head("POST", "/", "content-length: 1001", "expect: 100-continue"))
    await refused(client, 413, "request_too_large")
    client = await (await serve(max_body_bytes=1000)).connect()
    client.send(head("POST", "/", "content-length: 1000", "expect: 100-continue"))
    assert (await client.head()).status == 100


# Expect


async def test_an_answer_instead_of_continue_ends_the_connection(serve: MakeServer) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})

    client = await (await serve(app)).connect()
    client.send(head("POST", "/", "content-length: 5", "expect: 100-continue"))
    answer = await client.answer()
    assert (answer.status, answer.header("connection")) == (401, "close")
    assert await client.rest() == b""
    client = await (await serve(app)).connect()
    client.send(head("POST", "/", "content-length: 5", "expect: 100-continue") + b"12345")
    assert (await client.answer()).header("connection") is None  # its body was there: no doubt


async def test_an_http_1_0_client_is_never_told_to_continue(serve: MakeServer) -> None:
    client = await (await serve()).connect()
    lines = ("content-length: 2", "expect: 100-continue")
    client.send(head("POST", "/", *lines, version="1.0"))
    client.send(b"ab")
    assert (await client.answer()).body == b"ab"


# Connections


async def test_one_connection_too_many_is_told_so_and_the_others_stay(serve: MakeServer) -> None:
    running = await serve(max_connections=2)
    first, second = await running.connect(), await running.connect()
    await eventually(lambda: len(running.server.connections) == 2, "both are accepted")
    third = await running.connect()
    third.get("/")
    answer = await third.answer()
    assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
    assert answer.header("retry-after") == "1"
    assert await third.rest() == b""
    for client in (first, second):
        client.post(b"still here", "/")
        assert (await client.answer()).body == b"still here"
    first.close()
    await eventually(lambda: len(running.server.connections) == 1, "a place is free")
    fourth = await running.connect()
    fourth.post(b"in", "/")
    assert (await fourth.answer()).body == b"in"


async def test_who_was_refused_and_stays_takes_no_place(
    serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aibrix_ray.asgi.protocol.LINGER_S", 3600.0)
    running = await serve(max_connections=1)
    first, refused_one = await running.connect(), await running.connect()
    assert (await refused_one.answer()).status == 503
    first.close()
    await eventually(lambda: not running.server.connections, "the place is free")
    next_one = await running.connect()
    next_one.get("/")
    assert (await next_one.answer()).status == 200


async def test_a_refused_client_that_goes_on_sending_is_cut_off(
    serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aibrix_ray.asgi.protocol.LINGER_S", 0.05)
    running = await serve(upload_timeout_s=0.2)
    client = await running.connect()
    client.send(b"nonsense\r\n\r\n")
    assert (await client.answer()).status == 400
    with pytest.raises(ConnectionError):
        await within(_write_for_ever(client))


async def _write_for_ever(client: RawClient) -> None:
    while True:
        client.send(b"x" * 1000)
        await client.writer.drain()
        await asyncio.sleep(0.005)


@pytest.fixture
def files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("files")
def test_the_limit_on_open_files_bounds_connections_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1000), hard))
    assert connections_possible(10) == 10
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert not caplog.records
    assert connections_possible(hard) == (hard - 256) // 2
    assert f"is {hard}" in caplog.text


# Time


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"G", "head"),
        (b"POST / HTTP/1.1\r\nx: y", "head"),
        (head("POST", "/", "content-length: 5"), "body"),
        (head("POST", "/", "content-length: 5") + b"abcd", "body"),
        (head("POST", "/", "transfer-encoding: chunked") + b"1\r\n", "body"),
        (head("POST", "/", "content-length: 5", "expect: 100-continue"), "body"),
    ],
)
async def test_a_client_that_stalls_is_408(serve: MakeServer, data: bytes, what: str) -> None:
    left: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ON_DISCONNECT] = lambda: left.append(scope)
        await echo(scope, receive, send)

    running = await serve(app, upload_timeout_s=0.1)
    client = await running.connect()
    client.send(data)
    if b"expect" in data:
        assert (await client.head()).status == 100
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert what in answer.error["message"]
    assert await client.rest() == b""
    assert len(left) == (what == "body")
    client.close()
    await eventually(lambda: not running.server._shared.lingering, "it is gone")
    assert len(left) == (what == "body")  # told once


async def test_a_head_has_to_be_complete_in_time_however_busy_its_client(
    serve: MakeServer,
) -> None:
    client = await (await serve(upload_timeout_s=0.1)).connect()
    client.send(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ConnectionError):
        await within(_write_for_ever_slowly(client, b"x: y\r\n"))


async def _write_for_ever_slowly(client: RawClient, line: bytes) -> None:
    while True:
        client.send(line)
        await client.writer.drain()
        await asyncio.sleep(0.02)


async def test_a_body_that_moves_has_all_the_time(serve: MakeServer) -> None:
    client = await (await serve(upload_timeout_s=0.2)).connect()
    client.send(head("POST", "/", "content-length: 12"))
    for _ in range(12):
        await asyncio.sleep(0.05)
        client.send(b"x")
    assert (await client.answer()).body == b"x" * 12


async def test_a_body_that_we_do_not_read_is_not_its_clients_fault(serve: MakeServer) -> None:
    read = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read.wait()
        await echo(scope, receive, send)

    client = await (await serve(app, upload_timeout_s=0.1)).connect()
    body = b"x" * 10_000_000
    client.post(body, "/")
    await asyncio.sleep(0.5)
    read.set()
    assert len((await client.answer()).body) == len(body)


async def test_a_request_that_waits_in_the_queue_is_not_its_clients_fault(
    serve: MakeServer,
) -> None:
    first = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/first":
            await first.wait()
        await echo(scope, receive, send)

    client = await (await serve(app, upload_timeout_s=0.1)).connect()
    client.get("/first")
    client.send(head("POST", "/second", "content-length: 4") + b"ab")
    await asyncio.sleep(0.4)
    first.set()
    assert (await client.answer()).status == 200
    client.send(b"cd")
    assert (await client.answer()).body == b"abcd"


async def test_an_unread_body_that_stalls_ends_the_connection_without_a_second_answer(
    serve: MakeServer,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})

    client = await (await serve(app, upload_timeout_s=0.1)).connect()
    client.send(head("POST", "/", "content-length: 5") + b"ab")
    assert (await client.answer()).status == 404
    assert await client.rest() == b""


async def test_a_connection_that_never_sends_is_idle(serve: MakeServer) -> None:
    client = await (await serve(keep_alive_s=0.1)).connect()
    assert await client.rest() == b""


async def test_an_answer_under_way_is_not_idle(serve: MakeServer) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.5)
        await echo(scope, receive, send)

    client = await (await serve(app, keep_alive_s=0.1, upload_timeout_s=0.1)).connect()
    client.get("/")
    assert (await client.answer()).status == 200


async def test_a_closed_connection_whose_client_does_not_read_is_reset(
    serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aibrix_ray.asgi.protocol.STUCK_S", 0.2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 20_000_000})

    running = await serve(app, keep_alive_s=0.1)
    client = await RawClient.open(running.port, receive_buffer_bytes=4096)
    running.clients.append(client)
    client.get("/")
    await client.head()
    await eventually(lambda: not running.server.connections, "it was given up")


# Order


async def test_the_refusal_comes_behind_the_answers_under_way(serve: MakeServer) -> None:
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await release.wait()
        await send({"type": "http.response.body", "body": b"b"})

    running = await serve(app)
    client = await running.connect()
    client.get("/")
    assert (await client.head()).status == 200
    assert await client.chunk() == b"a"
    client.send(b"nonsense\r\n\r\n")
    await eventually(lambda: bool(running.server.refusals), "it has come")
    release.set()
    assert await client.chunk() == b"b"
    assert await client.chunk() == b""
    await refused(client, 400, "invalid_http")


async def test_a_bad_body_in_the_queue_is_refused_in_its_turn(serve: MakeServer) -> None:
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await echo(scope, receive, send)

    running = await serve(app)
    client = await running.connect()
    client.post(b"one", "/")
    client.send(head("POST", "/", "transfer-encoding: chunked") + b"zz\r\n")
    await eventually(lambda: bool(running.server.refusals), "it has come")
    release.set()
    assert (await client.answer()).body == b"one"
    await refused(client, 400, "invalid_http")


async def test_a_bad_body_whose_answer_has_begun_breaks_it(serve: MakeServer) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while (await receive())["type"] == "http.request":
            pass

    client = await (await serve(app)).connect()
    client.send(head("POST", "/", "transfer-encoding: chunked"))
    assert (await client.head()).status == 200
    assert await client.chunk() == b"a"
    client.send(b"zz\r\n")
    assert await client.rest() == b""


async def test_only_so_many_requests_may_wait_on_one_connection(serve: MakeServer) -> None:
    running = await serve(max_pipelined=3)
    client = await running.connect()
    client.send(head("GET", "/") * 10)
    for _ in range(4):
        assert (await client.answer()).status == 200
    await refused(client, 400, "invalid_http")
