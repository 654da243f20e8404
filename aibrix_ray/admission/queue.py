"""Everybody who waits for one model in one gateway, and the places that were promised to them."""

from __future__ import annotations

from aibrix_ray.admission.discipline import Discipline
from aibrix_ray.admission.heap import TicketHeap
from aibrix_ray.admission.ticket import Ticket


class AdmissionQueue:
    """At most `capacity` tickets wait: for a place, or aside until the fleet changes.

    A place that becomes free is promised to a ticket (`admit`) and is its own until the request
    has taken it or given it up (`settle`), so that no request that has just arrived takes it.
    Whoever drives this wakes those that it returns. Each ticket comes out once: of `wait` or
    `expire`, of `admit`, or by `leave`.

    All operations are O(log n) a ticket, `ahead_of` apart; memory is bounded by `capacity`.

    Attributes:
        line: tickets that wait for a place, and places promised. While it is not 0 a request that
            has just arrived waits too. Kept as a number because every request asks.
        capacity: how many may wait. Where it is lowered, those who wait already may stay.
    """

    __slots__ = (
        "_aside",
        "_by_deadline",
        "_by_rank",
        "_discipline",
        "_promised",
        "capacity",
        "line",
    )

    def __init__(self, discipline: Discipline, *, capacity: int) -> None:
        self.capacity = capacity
        self.line = 0
        self._discipline = discipline
        self._aside: dict[Ticket, None] = {}
        self._promised: set[Ticket] = set()
        self._by_deadline = TicketHeap()
        self._by_rank = TicketHeap()  # the first one is the first to be refused

    def __len__(self) -> int:
        return len(self._by_rank)

    @property
    def aside(self) -> int:
        """How many of those who wait do so until the fleet changes."""
        return len(self._aside)

    @property
    def promised(self) -> int:
        """Places that were promised and are not taken yet."""
        return len(self._promised)

    def wait(self, ticket: Ticket, *, aside: bool = False) -> Ticket | None:
        """Let a ticket wait, and return the one that has to leave for it, if any.

        That is the newest of the lowest priority, which may be the one that has just come.

        Args:
            ticket: who waits.
            aside: no place of the fleet as it is would do, because its replicas have been tried.
        """
        self._by_deadline.push(ticket.deadline_s, ticket)
        self._by_rank.push((ticket.priority, -ticket.arrived_s), ticket)
        if aside:
            self._aside[ticket] = None
        else:
            self._discipline.push(ticket)
        refused = self._by_rank.peek() if len(self) > self.capacity else None
        if refused is not None:
            self._take_out(refused[1])
        self._count()
        return refused[1] if refused is not None else None

    def changed(self) -> None:
        """Note that the fleet has changed: who stood aside for that waits for a place now."""
        aside, self._aside = self._aside, {}
        for ticket in aside:
            self._discipline.push(ticket)
        self._count()

    def use(self, discipline: Discipline) -> None:
        """Order those who wait for a place by another discipline from now on."""
        while (ticket := self._discipline.pop(0.0)) is not None:
            discipline.push(ticket)
        self._discipline = discipline

    def admit(self, places: int, now_s: float) -> list[Ticket]:
        """Promise the free places, less those promised before, to those who go next."""
        admitted: list[Ticket] = []
        while len(self._promised) < places and (ticket := self._discipline.pop(now_s)) is not None:
            self._by_deadline.discard(ticket)
            self._by_rank.discard(ticket)
            self._promised.add(ticket)
            admitted.append(ticket)
        self._count()
        return admitted

    def settle(self, ticket: Ticket) -> None:
        """Note that a ticket has taken the place it was promised, or will not take it."""
        self._promised.discard(ticket)
        self._count()

    def leave(self, ticket: Ticket) -> None:
        """Forget a ticket whose request has gone, wherever it is."""
        self._take_out(ticket)
        self.settle(ticket)

    def expire(self, now_s: float) -> list[Ticket]:
        """Take out those who have waited in vain, the earliest deadline first."""
        late: list[Ticket] = []
        while (first := self._by_deadline.peek()) is not None and first[0] <= now_s:
            self._take_out(first[1])
            late.append(first[1])
        self._count()
        return late

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many go before a ticket that waits for a place. O(n)."""
        return self._discipline.ahead_of(ticket)

    # private

    def _take_out(self, ticket: Ticket) -> None:
        self._by_deadline.discard(ticket)
        self._by_rank.discard(ticket)
        if ticket in self._aside:
            del self._aside[ticket]
        else:
            self._discipline.remove(ticket)

    def _count(self) -> None:
        self.line = len(self._discipline) + len(self._promised)
