"""A bounded queue with deadlines around a discipline."""

from __future__ import annotations

from aibrix_ray.admission.discipline import Discipline
from aibrix_ray.admission.heap import TicketHeap
from aibrix_ray.admission.ticket import Ticket


class AdmissionQueue:
    """At most `capacity` tickets wait. Every operation but `ahead_of` is O(log n)."""

    def __init__(self, discipline: Discipline, *, capacity: int) -> None:
        self.capacity = capacity
        self._discipline = discipline
        self._by_deadline = TicketHeap()
        self._by_rank = TicketHeap()  # the one to refuse first: lowest priority, then newest

    def __len__(self) -> int:
        return len(self._discipline)

    def offer(self, ticket: Ticket) -> Ticket | None:
        """Let a ticket wait, and return the one that has to leave for it, if any.

        That is the newest of the lowest priority, which may be the one that was offered.
        """
        self._discipline.push(ticket)
        self._by_deadline.push(ticket.deadline_s, ticket)
        self._by_rank.push((ticket.priority, -ticket.arrived_s), ticket)
        if len(self._discipline) <= self.capacity:
            return None
        refused = self._by_rank.peek()
        assert refused is not None, "a queue that is over its capacity has a ticket"
        self.remove(refused[1])
        return refused[1]

    def pop(self, now_s: float) -> Ticket | None:
        """Take out the ticket that goes next; its deadline may have passed (see `expire`)."""
        ticket = self._discipline.pop(now_s)
        if ticket is not None:
            self._by_deadline.discard(ticket)
            self._by_rank.discard(ticket)
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        """Take out a ticket whose request has gone; return whether it waited here."""
        self._by_deadline.discard(ticket)
        self._by_rank.discard(ticket)
        return self._discipline.remove(ticket)

    def expire(self, now_s: float) -> list[Ticket]:
        """Take out the tickets that have waited in vain, those of the earliest deadline first."""
        late: list[Ticket] = []
        while (first := self._by_deadline.peek()) is not None and first[0] <= now_s:
            self.remove(first[1])
            late.append(first[1])
        return late

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many tickets go before this one. O(n)."""
        return self._discipline.ahead_of(ticket)
