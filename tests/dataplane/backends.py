"""Backends that a test controls: an ASGI handler on our server, or a script on raw connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from aibrix_ray.asgi import Headers, HttpServer, Receive, Scope, Send, tcp_socket, unix_socket
from aibrix_ray.dataplane import Address
from aibrix_ray.engines.meta import TokenGuard
from tests.dataplane.waiting import within

SSE = (b"content-type", b"text/event-stream; charset=utf-8")
JSON = (b"content-type", b"application/json")
DONE = b"data: [DONE]\n\n"


class Call:
    """One request as a backend got it, and the means to answer it."""

    def __init__(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = list(scope["headers"])
        self.body = body
        self.disconnected = asyncio.Event()
        self._receive = receive
        self._send = send

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: bytes) -> bytes | None:
        return next((v for k, v in self.headers if k == name), None)

    async def answer(
        self,
        body: bytes = b"{}",
        *,
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Give a whole answer with a Content-Length."""
        length = (b"content-length", b"%d" % len(body))
        await self.begin(*headers, length, status=status)
        await self.end(body)

    async def begin(self, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        message = {"type": "http.response.start", "status": status, "headers": list(headers)}
        await self._send(message)

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data})

    async def until_disconnect(self) -> None:
        """Return when the gateway has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()


Handler = Callable[[Call], Awaitable[None]]


async def echo(call: Call) -> None:
    """Answer with the request's body."""
    await call.answer(call.body, headers=[JSON])


async def hang(call: Call) -> None:
    """Answer nothing until the gateway has left."""
    await call.until_disconnect()


class Backend:
    """A replica: `handler` behind our own HTTP server, on a Unix socket or on TCP."""

    def __init__(self, handler: Handler, *, uds: str | None = None, token: str = "") -> None:
        self._handler = handler
        self._uds = uds
        self._port = 0
        app = TokenGuard(self._app, token) if token else self._app
        self._server = HttpServer(app, keep_alive_s=60)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._called = asyncio.Event()
        self.calls: list[Call] = []

    @property
    def address(self) -> Address:
        if self._uds is not None:
            return Address(uds=self._uds)
        return Address(host="127.0.0.1", port=self._port)

    @property
    def connections(self) -> int:
        return len(self._server.connections)

    async def start(self) -> None:
        """Listen, again at the same address if it was killed."""
        if self._uds is not None:
            await self._server.listen(unix_socket(self._uds))
            return
        sock = tcp_socket("127.0.0.1", self._port)
        self._port = sock.getsockname()[1]
        await self._server.listen(sock)

    async def kill(self) -> None:
        """Die as a process does: no listener, every connection reset."""
        await self._server.stop_listening()
        for connection in list(self._server.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # connections learn of it before their tasks end
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def call(self, index: int = 0) -> Call:
        """Return the request number `index`, waiting for it."""
        while len(self.calls) <= index:
            self._called.clear()
            await within(self._called.wait())
        return self.calls[index]

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        call = Call(scope, bytes(body), receive, send)
        self.calls.append(call)
        self._called.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._handler(call)


class Peer:
    """One raw connection from the gateway, as a script sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read one request with a Content-Length; return head and body as they came."""
        head = await within(self.reader.readuntil(b"\r\n\r\n"))
        lengths = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.startswith(b"content-length:")
        ]
        return head + await within(self.reader.readexactly(lengths[0]))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"{}", *extra: bytes, status: bytes = b"200 OK") -> None:
        """Give a whole answer with a Content-Length; `extra` are header lines."""
        lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *extra, b"", body]
        await self.write(b"\r\n".join(lines))

    async def begin_stream(self, *extra: bytes) -> None:
        """Send the head of a chunked event stream."""
        lines = [
            b"HTTP/1.1 200 OK",
            b"content-type: text/event-stream",
            b"transfer-encoding: chunked",
        ]
        await self.write(b"\r\n".join([*lines, *extra, b"", b""]))

    async def chunk(self, data: bytes) -> None:
        await self.write(chunk(data))

    async def end_stream(self) -> None:
        await self.write(b"0\r\n\r\n")

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close so that the other side sees a reset connection (on TCP)."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        """Return when the gateway has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await within(self.reader.read(65536)):
                pass


Script = Callable[[Peer], Awaitable[None]]


class RawBackend:
    """A replica whose every byte and packet a script decides; the script runs once a connection."""

    def __init__(self, script: Script, *, uds: str | None = None) -> None:
        self._script = script
        self._uds = uds
        self._port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._peers: list[Peer] = []
        self.connections = 0

    @property
    def address(self) -> Address:
        if self._uds is not None:
            return Address(uds=self._uds)
        return Address(host="127.0.0.1", port=self._port)

    async def start(self) -> None:
        if self._uds is not None:
            self._server = await asyncio.start_unix_server(self._accept, self._uds)
            return
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop to listen; open connections stay."""
        assert self._server is not None
        self._server.close()

    async def kill(self) -> None:
        """Die: no listener, every connection reset. A script that failed fails the test."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        for peer in self._peers:
            peer.writer.transport.abort()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                raise result

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = Peer(reader, writer)
        self._peers.append(peer)
        self._tasks.add(asyncio.create_task(self._run(peer)))

    async def _run(self, peer: Peer) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError):  # the gateway has hung up
                await self._script(peer)
        finally:
            peer.close()


class MakeBackend(Protocol):
    async def __call__(
        self, handler: Handler = ..., *, tcp: bool = False, token: str = ""
    ) -> Backend:
        """Start a backend with `handler`; by default it echoes. `token` guards it."""
        ...


class MakeRawBackend(Protocol):
    async def __call__(self, script: Script, *, tcp: bool = False) -> RawBackend:
        """Start a backend whose connections run `script`."""
        ...


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str) -> bytes:
    """Return one SSE event with a small JSON object."""
    return b"data: " + json.dumps({"text": text}).encode() + b"\n\n"
