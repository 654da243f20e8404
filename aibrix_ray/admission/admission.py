"""Everybody who waits for one model in one gateway, and the places that were promised to them."""

from __future__ import annotations

from collections.abc import Iterable

from aibrix_ray.admission.discipline import Discipline
from aibrix_ray.admission.queue import AdmissionQueue
from aibrix_ray.admission.ticket import Ticket


class Admission:
    """Tickets wait in the queue for a place, or aside until the fleet changes.

    A place that becomes free is promised to a ticket (`admit`) and is its own until the request
    has taken it or given it up (`settle`), so that no request that has just arrived takes it.
    Whoever drives this wakes those that it returns; it forgets nobody: each ticket that was let in
    comes out of exactly one of `wait`, `admit`, `expire` and `leave`.

    Attributes:
        line: tickets in the queue and promised places. While it is not 0 a request that has just
            arrived waits too. Kept as a number because every request asks.
    """

    __slots__ = ("_aside", "_promised", "_queue", "line")

    def __init__(self, discipline: Discipline, *, capacity: int) -> None:
        self._queue = AdmissionQueue(discipline, capacity=capacity)
        self._aside: dict[Ticket, None] = {}
        self._promised: set[Ticket] = set()
        self.line = 0

    @property
    def capacity(self) -> int:
        """How many may wait."""
        return self._queue.capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        # Those who wait already stay; a smaller queue only takes nobody until it has emptied.
        self._queue.capacity = capacity

    @property
    def waiting(self) -> int:
        """How many wait, in the queue or aside."""
        return len(self._queue) + len(self._aside)

    @property
    def aside(self) -> int:
        """How many of them wait for the fleet to change."""
        return len(self._aside)

    @property
    def promised(self) -> int:
        """Places that were promised and are not taken yet."""
        return len(self._promised)

    def wait(self, ticket: Ticket, *, for_change: bool = False) -> Ticket | None:
        """Let a ticket wait and return the one that is refused for it, if any.

        Args:
            ticket: who waits.
            for_change: the replicas that there are have been tried; wait for others.
        """
        if for_change and self.waiting < self.capacity:
            self._aside[ticket] = None
            return None
        refused = ticket if for_change else self._offer(ticket)
        self._count()
        return refused

    def changed(self) -> list[Ticket]:
        """Note that the fleet has changed: who waited for that waits for a place now.

        Returns those for whom the queue has no room.
        """
        aside, self._aside = self._aside, {}
        refused = [self._offer(ticket) for ticket in aside]
        self._count()
        return [ticket for ticket in refused if ticket is not None]

    def admit(self, places: int, now_s: float) -> list[Ticket]:
        """Promise the free places, less those promised before, to those who go next."""
        admitted: list[Ticket] = []
        while len(self._promised) < places and (ticket := self._queue.pop(now_s)) is not None:
            self._promised.add(ticket)
            admitted.append(ticket)
        self._count()
        return admitted

    def settle(self, ticket: Ticket) -> None:
        """Note that a ticket has taken its promised place, or will not take it."""
        self._promised.discard(ticket)
        self._count()

    def leave(self, ticket: Ticket) -> None:
        """Forget a ticket whose request has gone."""
        self._aside.pop(ticket, None)
        self._queue.remove(ticket)
        self.settle(ticket)

    def expire(self, now_s: float) -> list[Ticket]:
        """Take out those that have waited in vain."""
        late = self._queue.expire(now_s)
        late += [ticket for ticket in self._aside if ticket.deadline_s <= now_s]
        for ticket in late:
            self._aside.pop(ticket, None)
        self._count()
        return late

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many go before this ticket, which is in the queue. O(n)."""
        return self._queue.ahead_of(ticket)

    # private

    def _offer(self, ticket: Ticket) -> Ticket | None:
        if self.waiting >= self.capacity and len(self._queue) == 0:
            return ticket
        # Those aside count too; they are never the ones to leave, having been tried already.
        held_back = len(self._aside)
        self._queue.capacity -= held_back
        refused = self._queue.offer(ticket)
        self._queue.capacity += held_back
        return refused

    def _count(self) -> None:
        self.line = len(self._queue) + len(self._promised)


def holders(tickets: Iterable[Ticket]) -> list[object]:
    """Return what was kept with the tickets."""
    return [ticket.holder for ticket in tickets]
