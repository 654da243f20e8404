"""Serves an ASGI application from within a Ray replica: uvicorn on sockets that we own.

What is special here, each point learnt by an outage: uvicorn must not touch logging (its default
set-up closes Serve's MemoryHandler, and the controller then stops the replica at its next restart),
nor signals (replicas run user code off the main thread), nor the event loop (Serve owns it).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BACKLOG = 2048

#: The task that runs a request, in its scope. `asyncio.current_task()` asks the kernel for the pid.
TASK = "aibrix.task"
#: An application stores a callable under this key of the scope; it is called once if the client
#: goes away before the answer is complete. Saves a task a request that would wait on `receive`.
ON_DISCONNECT = "aibrix.on_disconnect"

_BAD_HTTP = (
    b'{"error":{"message":"invalid HTTP request","type":"invalid_request_error",'
    b'"param":null,"code":"invalid_http"}}'
)


class ReplicaHttpProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """uvicorn's httptools protocol, plus a disconnect hook, OpenAI-shaped 400s and draining."""

    closing_after_answer = False

    def on_message_begin(self) -> None:
        """Begin a request; tell the application that the disconnect hook is honoured."""
        super().on_message_begin()
        self.scope[ON_DISCONNECT] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application whose answer is not complete."""
        cycle = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_complete:
            hook = cycle.scope.get(ON_DISCONNECT)
            if hook is not None:
                hook()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the shape that API clients parse."""
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(_BAD_HTTP)
        )
        self.transport.write(head + _BAD_HTTP)
        self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # On a draining connection the answer says `Connection: close`.
        if self.closing_after_answer:
            cycle.keep_alive = False
        cycle.transport = _OneWrite(self.transport)
        task = self.loop.create_task(cycle.run_asgi(app))
        cycle.scope[TASK] = task
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def close_after_answer(self) -> None:
        """Close with the answer under way, or with the answer to the next request."""
        self.closing_after_answer = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    @property
    def idle(self) -> bool:
        """No request is under way on this connection."""
        return self.cycle is None or self.cycle.response_complete


class _OneWrite:
    """The transport as one answer sees it: its head leaves together with its first body bytes.

    uvicorn writes them one after the other, and each write is a system call.
    """

    __slots__ = ("_head", "_transport", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes = b""
        self.write: Callable[[bytes], None] = self._hold

    def _hold(self, data: bytes) -> None:
        self._head = data
        self.write = self._join
        if data.startswith(b"HTTP/1.1 100"):
            self._flush()
            self.write = self._hold

    def _join(self, data: bytes) -> None:
        self._transport.write(self._head + data)
        self._head = b""
        self.write = self._transport.write

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._transport.write(head)

    def close(self) -> None:
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether the connection is closing."""
        return self._transport.is_closing()


class HttpServer:
    """Accepts on the sockets it is given and serves `app` on the running loop.

    uvicorn's connection protocol without its `Server`: that one owns signals, ticks and shut-down
    order, all of which are ours here.
    """

    def __init__(self, app: AsgiApp, *, keep_alive_s: float) -> None:
        self._config = uvicorn.Config(
            app,
            interface="asgi3",  # a bound method would be taken for ASGI2
            loop="none",
            http=ReplicaHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=int(keep_alive_s),
        )
        self._config.load()
        self._state = ServerState()
        self._servers: list[asyncio.Server] = []

    @property
    def connections(self) -> set[ReplicaHttpProtocol]:
        """The open client connections."""
        found: set[ReplicaHttpProtocol] = self._state.connections
        return found

    async def listen(self, sock: socket.socket) -> None:
        """Start to accept on a bound socket; the server owns it from here on."""
        loop = asyncio.get_running_loop()
        sock.listen(BACKLOG)
        server = await loop.create_server(self._protocol, sock=sock, backlog=BACKLOG)
        self._servers.append(server)

    async def stop_listening(self) -> None:
        """Accept what the queues hold, then close the listeners; connections stay open."""
        await asyncio.sleep(0)  # one turn of the loop accepts what had arrived
        for server in self._servers:
            server.close()
        self._servers.clear()

    def drain_connections(self) -> None:
        """Make every open connection close with its next answer (`Connection: close`)."""
        for connection in self.connections:
            connection.close_after_answer()

    async def close(self) -> None:
        """Close listeners and connections now; answers under way are cut."""
        await self.stop_listening()
        for connection in list(self.connections):
            connection.transport.close()
        for task in list(self._state.tasks):
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=5.0)

    def _protocol(self) -> asyncio.Protocol:
        return ReplicaHttpProtocol(config=self._config, server_state=self._state, app_state={})


def unix_socket(path: str) -> socket.socket:
    """Bind a Unix socket at `path` (inside a 0700 directory); a stale file is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o600)
    sock.setblocking(False)
    return sock


def tcp_socket(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Bind a TCP socket; `port` 0 takes a free one. With `reuse_port`, siblings share the port.

    It does not listen yet: `HttpServer.listen` makes it so.

    Raises:
        OSError: the port is taken by somebody who does not share it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, port))
    sock.setblocking(False)
    return sock
