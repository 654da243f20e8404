"""A heap of tickets from which any can be taken out."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from aibrix_ray.admission.ticket import Ticket

#: So many that were discarded may lie in a heap, besides as many as are live.
_SLACK = 64


class TicketHeap:
    """Tickets by a key, the smallest first; of equal keys, the one that was put in first.

    What is discarded is only marked, and swept out once it is more than half of the heap: all
    operations are O(log n) amortised, and the memory is at most about twice that of what is live.
    """

    __slots__ = ("_heap", "_live", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, Ticket]] = []
        self._live: dict[Ticket, int] = {}
        self._serial = count()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._live

    def __iter__(self) -> Iterator[Ticket]:
        """Yield the tickets in no particular order."""
        return iter(self._live)

    def push(self, key: Any, ticket: Ticket) -> None:
        """Put a ticket in; keys have to be comparable with each other."""
        assert ticket not in self._live, "a ticket waits once"
        serial = next(self._serial)
        self._live[ticket] = serial
        heappush(self._heap, (key, serial, ticket))

    def peek(self) -> tuple[Any, Ticket] | None:
        """Return the first ticket and its key, or `None` if there is none."""
        heap, live = self._heap, self._live
        while heap:
            key, serial, ticket = heap[0]
            if live.get(ticket) == serial:
                return key, ticket
            heappop(heap)
        return None

    def pop(self) -> Ticket | None:
        """Take the first ticket out, or return `None` if there is none."""
        first = self.peek()
        if first is None:
            return None
        heappop(self._heap)
        del self._live[first[1]]
        return first[1]

    def discard(self, ticket: Ticket) -> bool:
        """Take a ticket out, wherever it is; return whether it was there."""
        if self._live.pop(ticket, None) is None:
            return False
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            live = self._live
            self._heap = [entry for entry in self._heap if live.get(entry[2]) == entry[1]]
            heapify(self._heap)
        return True

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many tickets go before this one. O(n): for whoever looks, not for the path."""
        live = self._live
        own = live[ticket]
        entries = [entry[:2] for entry in self._heap if live.get(entry[2]) == entry[1]]
        place = next(entry for entry in entries if entry[1] == own)
        return sum(entry < place for entry in entries)
