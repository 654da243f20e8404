"""An HTTP server on sockets that we own, on a loop that we do not.

What is special here, each point learnt by an outage: uvicorn must not touch logging (its default
set-up closes Serve's MemoryHandler, and the controller then stops the replica at its next restart),
nor signals (replicas run user code off the main thread), nor the event loop (Serve owns it).
"""

from __future__ import annotations

import asyncio
import select
import socket

import uvicorn
from uvicorn.server import ServerState

from aibrix_ray.asgi.protocol import HttpProtocol
from aibrix_ray.asgi.types import AsgiApp

BACKLOG = 2048


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
            http=HttpProtocol,
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
        self._sockets: list[socket.socket] = []

    @property
    def connections(self) -> set[HttpProtocol]:
        """The open client connections."""
        found: set[HttpProtocol] = self._state.connections
        return found

    async def listen(self, sock: socket.socket) -> None:
        """Start to accept on a bound socket; the server owns it from here on."""
        loop = asyncio.get_running_loop()
        sock.listen(BACKLOG)
        server = await loop.create_server(self._protocol, sock=sock, backlog=BACKLOG)
        self._servers.append(server)
        self._sockets.append(sock)

    async def stop_listening(self) -> None:
        """Accept what the queues hold, then close the listeners; connections stay open."""
        for _ in range(BACKLOG):  # libuv accepts one connection a turn of the loop
            await asyncio.sleep(0)
            if not select.select(self._sockets, [], [], 0)[0]:
                break
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._sockets.clear()

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
        return HttpProtocol(config=self._config, server_state=self._state, app_state={})
