"""An HTTP server on sockets that we own, on a loop that we do not.

What is special here, each point learnt by an outage: uvicorn must not touch logging (its default
set-up closes Serve's MemoryHandler, and the controller then stops the replica at its next restart),
nor signals (replicas run user code off the main thread), nor the event loop (Serve owns it).
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import Counter

import uvicorn

from aibrix_ray.asgi.connections import Connections
from aibrix_ray.asgi.limits import ConnectionLimits
from aibrix_ray.asgi.protocol import HttpProtocol
from aibrix_ray.asgi.tls import Certificate
from aibrix_ray.asgi.types import AsgiApp

BACKLOG = 2048
#: Seconds that a TLS client gets to say good-bye.
_TLS_SHUTDOWN_S = 5.0


class HttpServer:
    """Accepts on the sockets it is given and serves `app` on the running loop.

    uvicorn's connection protocol without its `Server`: that one owns signals, ticks and shut-down
    order, all of which are ours here. With a `certificate` it speaks TLS, and looks for a renewed
    one every second.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        keep_alive_s: float,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (it is frozen)
        certificate: Certificate | None = None,
    ) -> None:
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
        )
        self._config.load()
        self._shared = Connections(limits, keep_alive_s=keep_alive_s)
        self._certificate = certificate
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._certificate_checked_s = 0.0

    @property
    def connections(self) -> set[HttpProtocol]:
        """The open client connections that are served."""
        return self._shared.connections

    @property
    def refusals(self) -> Counter[str]:
        """How often each error code was answered without asking the application."""
        return self._shared.refusals

    async def listen(self, sock: socket.socket) -> None:
        """Start to accept on a bound socket; the server owns it from here on."""
        loop = asyncio.get_running_loop()
        sock.listen(BACKLOG)
        tls = None if self._certificate is None else self._certificate.context
        server = await loop.create_server(
            lambda: HttpProtocol(self._config, self._shared, loop),
            sock=sock,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=self._shared.limits.upload_timeout_s if tls else None,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S if tls else None,
        )
        self._servers.append(server)
        self._sockets.append(sock)
        if self._timer is None:
            self._sweep(loop)

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
        """Make every connection close with its next answer (`Connection: close`)."""
        self._shared.draining = True
        for connection in self.connections:
            connection.close_after_answer()

    def close_idle_connections(self) -> None:
        """Close connections on which no request is under way.

        A request that its client is just sending is lost with them: call it some time after
        `drain_connections`, so that only who had nothing to send is met.
        """
        self._shared.close_idle()

    async def close(self) -> None:
        """Close listeners and connections now; answers under way are cut."""
        await self.stop_listening()
        if self._timer is not None:
            self._timer.cancel()
        for connection in [*self.connections, *self._shared.lingering]:
            connection.transport.close()
        for task in list(self._shared.tasks):
            task.cancel()
        if self._shared.tasks:
            await asyncio.wait(list(self._shared.tasks), timeout=5.0)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        self._shared.sweep(now_s)
        if self._certificate is not None and now_s - self._certificate_checked_s >= 1.0:
            self._certificate_checked_s = now_s
            self._certificate.refresh()
        self._timer = loop.call_later(self._shared.period_s, self._sweep, loop)
