"""What arrives of a stream goes on to its client in the very call that brought it.

At an engine's pace each event comes alone. Waking a task for each costs twice what forwarding the
bytes does.
"""

from __future__ import annotations

from collections.abc import Callable

from aibrix_ray.dataplane.exchange import Exchange
from aibrix_ray.dataplane.sse import EventStream


class Pour:
    """Takes the pieces of one stream; says no when its client must be waited for.

    Attributes:
        left: what the client has not taken; the task sends it.
    """

    __slots__ = ("_clock", "_exchange", "_stream", "left")

    def __init__(self, exchange: Exchange, stream: EventStream, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._exchange = exchange
        self._stream = stream
        self.left = b""

    def __call__(self, data: bytes) -> bool:
        """Pass a piece on; return whether the next one may come."""
        exchange = self._exchange
        exchange.poured_s = self._clock()
        ready = self._stream.feed(data)
        if not ready:
            return True
        write = exchange.write
        if write is not None and write(ready):
            return True
        self.left = ready
        return False
