"""What the connections of one server share: who is open, what each may take, and one timer.

One sweep over all connections instead of a timer each: timers cost more than the requests they
guard. Nothing here outlives the server's process.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from uvicorn.server import ServerState

from aibrix_ray.asgi.limits import ConnectionLimits

if TYPE_CHECKING:
    from aibrix_ray.asgi.protocol import HttpProtocol

#: Connections that were refused and are being read empty, so that the client sees its answer
#: instead of a reset connection; beyond so many at once they are closed without that courtesy.
MAX_LINGERING = 1024


class Connections(ServerState):  # type: ignore[misc]
    """The state of one server.

    Attributes:
        connections: open client connections that are served.
        lingering: connections that were refused and wait for their client to notice.
        refusals: how often each error code was answered without asking the application.
        draining: the server leaves; a new connection gets one answer.
    """

    connections: set[HttpProtocol]

    def __init__(self, limits: ConnectionLimits, *, keep_alive_s: float) -> None:
        super().__init__()
        self.limits = limits
        self.keep_alive_s = keep_alive_s
        self.lingering: set[HttpProtocol] = set()
        self.refusals: Counter[str] = Counter()
        self.draining = False

    @property
    def period_s(self) -> float:
        """How often `sweep` is called for: a quarter of the shortest time limit, at most 1 s."""
        return min(1.0, self.keep_alive_s / 4, self.limits.upload_timeout_s / 4)

    @property
    def full(self) -> bool:
        """More connections are open than may be."""
        return len(self.connections) > self.limits.max_connections

    def sweep(self, now_s: float) -> None:
        """End what has been idle, slow or stuck for too long; `now_s` is the loop's time."""
        recent_s = now_s - min(self.keep_alive_s, self.limits.upload_timeout_s)
        for connection in [c for c in self.connections if c.since_s <= recent_s]:
            connection.enforce(now_s)
        for connection in list(self.lingering):
            connection.enforce(now_s)

    def close_idle(self) -> None:
        """Close the connections on which no request is under way."""
        for connection in list(self.connections):
            if connection.idle:
                connection.transport.close()
