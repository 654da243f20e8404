"""Our HTTP server and its sockets, with small applications. On asyncio's own loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from aibrix_ray.asgi import (
    ON_DISCONNECT,
    TASK,
    AsgiApp,
    Headers,
    HttpServer,
    Receive,
    Scope,
    Send,
    tcp_socket,
    unix_socket,
)
from tests.dataplane.clients import RawClient, head
from tests.dataplane.waiting import eventually, within

Serve = Callable[[AsgiApp], Awaitable[RawClient]]


@pytest.fixture
async def servers() -> AsyncIterator[list[HttpServer]]:
    made: list[HttpServer] = []
    yield made
    for server in made:
        await server.close()


@pytest.fixture
async def serve(servers: list[HttpServer]) -> AsyncIterator[Serve]:
    """Serve an application; return a client that is connected to it."""
    clients: list[RawClient] = []

    async def start(app: AsgiApp) -> RawClient:
        servers.append(HttpServer(app, keep_alive_s=60))
        sock = tcp_socket("127.0.0.1", 0)
        port = sock.getsockname()[1]
        await servers[-1].listen(sock)
        clients.append(await RawClient.open(port))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def answering(
    status: int = 200,
    headers: Headers = [],  # noqa: B006
    pieces: tuple[bytes, ...] = (b"ok",),
) -> AsgiApp:
    """Return an application that gives one answer in pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for i, piece in enumerate(pieces):
            more = i + 1 < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    return app


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


def bytes_written(client: RawClient) -> list[bytes]:
    """Keep what arrives packet by packet."""
    packets: list[bytes] = []
    feed = client.reader.feed_data

    def record(data: bytes) -> None:
        packets.append(data)
        feed(data)

    client.reader.feed_data = record  # type: ignore[method-assign, assignment]
    return packets


# Answers


async def test_the_scope_is_that_of_asgi_and_has_our_two_keys(serve: Serve) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answering()(scope, receive, send)

    client = await serve(app)
    client.get("/a%20b?x=%20", "X-Name: Value", "x-name: 2", method="PUT")
    await client.answer()
    (scope,) = scopes
    assert (scope["type"], scope["method"], scope["http_version"]) == ("http", "PUT", "1.1")
    assert (scope["path"], scope["raw_path"]) == ("/a b", b"/a%20b")
    assert (scope["query_string"], scope["scheme"]) == (b"x=%20", "http")
    assert scope["headers"] == [(b"host", b"gateway"), (b"x-name", b"Value"), (b"x-name", b"2")]
    assert scope["client"][0] == "127.0.0.1"
    assert scope[ON_DISCONNECT] is None
    assert isinstance(scope[TASK], asyncio.Task)


async def test_an_answer_with_a_length_leaves_in_one_write(serve: Serve) -> None:
    client = await serve(answering(headers=[(b"content-length", b"2")]))
    packets = bytes_written(client)
    client.get("/")
    answer = await client.answer()
    assert (answer.body, answer.chunked) == (b"ok", False)
    assert len(packets) == 1


async def test_an_answer_without_a_length_is_chunked(serve: Serve) -> None:
    client = await serve(answering(pieces=(b"a", b"", b"b" * 20, b"")))
    packets = bytes_written(client)
    client.get("/")
    answer = await client.answer()
    assert (answer.body, answer.chunked) == (b"a" + b"b" * 20, True)
    assert b"".join(packets).endswith(b"1\r\na\r\n14\r\n" + b"b" * 20 + b"\r\n0\r\n\r\n")


async def test_the_first_body_bytes_take_the_head_along(serve: Serve) -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"second"})

    client = await serve(app)
    client.get("/")
    await client.head()
    assert await client.chunk() == b"first"
    go.set()
    assert await client.chunk() == b"second"


@pytest.mark.parametrize(
    ("method", "status", "pieces"),
    [
        ("HEAD", 200, (b"body",)),
        ("HEAD", 404, (b"a", b"b")),
        ("GET", 204, (b"",)),
        ("GET", 304, (b"",)),
    ],
)
async def test_an_answer_that_may_have_no_body_has_none(
    serve: Serve, method: str, status: int, pieces: tuple[bytes, ...]
) -> None:
    client = await serve(answering(status, pieces=pieces))
    for _ in range(2):  # the connection goes on
        client.get("/", method=method)
        answer = await client.answer(method)
        assert (answer.status, answer.chunked) == (status, False)


async def test_head_keeps_the_length_that_a_body_would_have(serve: Serve) -> None:
    client = await serve(answering(headers=[(b"content-length", b"2")]))
    client.get("/", method="HEAD")
    assert (await client.answer("HEAD")).header("content-length") == "2"


@pytest.mark.parametrize("length", [b"1", b"3"])
async def test_a_body_that_has_not_its_length_ends_the_connection(
    serve: Serve, caplog: pytest.LogCaptureFixture, length: bytes
) -> None:
    caplog.set_level(logging.CRITICAL)
    client = await serve(answering(headers=[(b"content-length", length)]))
    client.get("/")
    assert b"ok" not in (await client.rest()).partition(b"\r\n\r\n")[2]


async def test_an_application_that_fails_before_it_answers_is_a_500(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("a secret")

    client = await serve(app)
    client.get("/")
    answer = await client.answer()
    assert (answer.status, answer.header("connection")) == (500, "close")
    assert b"secret" not in answer.body
    assert "a secret" in caplog.text


async def test_an_application_that_ends_amid_its_answer_has_no_regular_end(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})

    client = await serve(app)
    client.get("/")
    await client.head()
    assert await client.rest() == b"1\r\na\r\n"
    assert "without completing" in caplog.text


@pytest.mark.parametrize("asked", [True, False], ids=["by the client", "by the application"])
async def test_connection_close_closes(serve: Serve, asked: bool) -> None:
    headers: Headers = [] if asked else [(b"connection", b"Close")]
    client = await serve(answering(headers=headers))
    client.get("/", *(["connection: close"] if asked else []))
    answer = await client.answer()
    assert answer.all("connection") == ["close"]
    assert await client.rest() == b""


async def test_an_http_1_0_answer_ends_with_its_connection(serve: Serve) -> None:
    client = await serve(answering(pieces=(b"a", b"b")))
    client.get("/", version="1.0")
    answer = await client.answer()
    assert (answer.chunked, answer.body) == (False, b"ab")


# Requests


async def test_a_body_arrives_in_whatever_packets_it_came(serve: Serve) -> None:
    client = await serve(echo)
    body = bytes(range(256)) * 4000
    client.send(head("POST", "/", f"content-length: {len(body)}"))
    for start in range(0, len(body), 70_001):
        client.send(body[start : start + 70_001])
        await client.flush()
    assert (await client.answer()).body == body


async def test_pipelined_requests_wait_for_the_one_before(serve: Serve) -> None:
    running = most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await echo(scope, receive, send)
        running -= 1

    client = await serve(app)
    for i in range(10):
        client.post(b"%d" % i, "/")
    assert [(await client.answer()).body for _ in range(10)] == [b"%d" % i for i in range(10)]
    assert most == 1


async def test_continue_is_sent_when_the_body_is_wanted_and_not_before(serve: Serve) -> None:
    want = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await want.wait()
        await echo(scope, receive, send)

    client = await serve(app)
    packets = bytes_written(client)
    client.send(head("POST", "/", "expect: 100-continue", "content-length: 2"))
    await asyncio.sleep(0)
    assert packets == []
    want.set()
    assert (await client.head()).status == 100
    client.send(b"ok")
    assert (await client.answer()).body == b"ok"


async def test_a_refusal_needs_no_continue(serve: Serve) -> None:
    client = await serve(answering(413, [(b"content-length", b"2"), (b"connection", b"close")]))
    client.send(head("POST", "/", "expect: 100-continue", "content-length: 2"))
    assert (await client.answer()).status == 413


# Disconnects


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_hook_is_called_once_if_the_client_leaves_before_the_end(
    serve: Serve, streaming: bool
) -> None:
    calls = 0
    left, begun = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        def hook() -> None:
            nonlocal calls
            calls += 1
            left.set()

        scope[ON_DISCONNECT] = hook
        if streaming:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        begun.set()
        await left.wait()
        await send({"type": "http.response.body", "body": b"nobody reads this"})
        assert (await receive())["type"] == "http.disconnect"

    client = await serve(app)
    client.get("/")
    await within(begun.wait())
    client.leave()
    await within(left.wait())
    await asyncio.sleep(0)
    assert calls == 1


async def test_the_hook_is_not_called_after_the_end(
    serve: Serve, servers: list[HttpServer]
) -> None:
    calls: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[ON_DISCONNECT] = lambda: calls.append(1)
        await answering()(scope, receive, send)

    client = await serve(app)
    client.get("/")
    await client.answer()
    client.leave()
    await eventually(lambda: not servers[0].connections, "the connection is gone")
    assert calls == []


async def test_a_request_in_the_queue_is_told_too(serve: Serve) -> None:
    seen: list[str] = []
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        done.set()
        await asyncio.Event().wait()

    client = await serve(app)
    client.get("/first")
    client.get("/second")
    await within(done.wait())
    client.leave()
    assert seen == ["/first"]


# Sockets


async def test_a_unix_socket_is_only_its_users_and_replaces_a_stale_file(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    for _ in range(2):
        with unix_socket(str(path)) as sock:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert not sock.getblocking()
    assert path.exists()


async def test_a_unix_socket_is_served_like_any_other(
    tmp_path: Path, servers: list[HttpServer]
) -> None:
    servers.append(HttpServer(echo, keep_alive_s=60))
    path = str(tmp_path / "s.sock")
    await servers[0].listen(unix_socket(path))
    client = RawClient(*await asyncio.open_unix_connection(path))
    client.post(b"over a file", "/")
    assert (await client.answer()).body == b"over a file"
    client.close()


def test_siblings_share_a_port_and_nobody_else_does() -> None:
    with tcp_socket("127.0.0.1", 0, reuse_port=True) as first:
        port = first.getsockname()[1]
        first.listen()
        with tcp_socket("127.0.0.1", port, reuse_port=True) as second:
            assert second.getsockname()[1] == port
        with pytest.raises(OSError, match="in use") as refused:
            tcp_socket("127.0.0.1", port)
        left_by(refused).close()


def test_a_port_that_is_taken_leaves_no_socket_open() -> None:
    with tcp_socket("127.0.0.1", 0) as sock:
        sock.listen()
        with pytest.raises(OSError, match="in use") as refused:
            tcp_socket("127.0.0.1", sock.getsockname()[1])
        with left_by(refused) as left:
            assert left.fileno() == -1


def left_by(refused: pytest.ExceptionInfo[OSError]) -> socket.socket:
    """Return the socket of the frame that failed to bind it."""
    sock: socket.socket = refused.traceback[-1].frame.f_locals["sock"]
    return sock


def test_a_bound_socket_does_not_listen_yet() -> None:
    with tcp_socket("127.0.0.1", 0) as sock, pytest.raises(ConnectionRefusedError):
        socket.create_connection(sock.getsockname())


def test_an_address_with_colons_is_ipv6() -> None:
    try:
        sock = tcp_socket("::1", 0)
    except OSError:
        pytest.skip("there is no IPv6 here")
    with sock:
        assert sock.family == socket.AF_INET6


# The server


async def test_one_server_listens_on_several_sockets(
    tmp_path: Path, servers: list[HttpServer]
) -> None:
    servers.append(HttpServer(answering(), keep_alive_s=60))
    tcp = tcp_socket("127.0.0.1", 0)
    port = tcp.getsockname()[1]
    await servers[0].listen(tcp)
    await servers[0].listen(unix_socket(str(tmp_path / "s.sock")))
    clients = [
        await RawClient.open(port),
        RawClient(*await asyncio.open_unix_connection(str(tmp_path / "s.sock"))),
    ]
    for client in clients:
        client.get("/")
        assert (await client.answer()).body == b"ok"
        client.close()


async def test_an_idle_connection_is_closed_after_its_time(servers: list[HttpServer]) -> None:
    servers.append(HttpServer(answering(), keep_alive_s=1))
    sock = tcp_socket("127.0.0.1", 0)
    port = sock.getsockname()[1]
    await servers[0].listen(sock)
    client = await RawClient.open(port)
    client.get("/")
    await client.answer()
    assert await client.rest() == b""
    client.close()


async def test_closing_ends_listeners_connections_and_requests(
    serve: Serve, servers: list[HttpServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    ended = asyncio.Event()
    begun = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    client = await serve(app)
    port = client.writer.get_extra_info("peername")[1]
    client.get("/")
    await within(begun.wait())
    await servers[0].close()
    assert ended.is_set()
    assert await client.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await RawClient.open(port)


async def test_serving_leaves_the_configuration_of_logging_alone(serve: Serve) -> None:
    logger = logging.getLogger("uvicorn")
    before = (logger.level, list(logger.handlers), logger.propagate, logging.root.handlers[:])
    client = await serve(answering())
    client.get("/")
    await client.answer()
    assert (logger.level, logger.handlers, logger.propagate, logging.root.handlers) == before
