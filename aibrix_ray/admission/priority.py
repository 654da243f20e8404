"""Priority classes with aging: the default discipline."""

from __future__ import annotations

from aibrix_ray.admission.heap import TicketHeap
from aibrix_ray.admission.ticket import Ticket


class PriorityWithAging:
    """A higher priority goes first, and each `aging_s` of waiting counts as one class more.

    All age at the same pace, so who of two goes first never changes while they wait, and one heap
    keyed by `arrived_s - priority * aging_s` holds the order. Within a class it is first come,
    first served. Nobody starves: a ticket is passed only by those that arrive within
    `(their priority - its own) * aging_s` seconds after it.
    """

    def __init__(self, *, aging_s: float) -> None:
        self._aging_s = aging_s
        self._heap = TicketHeap()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, ticket: Ticket) -> None:
        """Take a ticket in."""
        self._heap.push(ticket.arrived_s - ticket.priority * self._aging_s, ticket)

    def pop(self, now_s: float) -> Ticket | None:
        """Take out the ticket that goes next."""
        return self._heap.pop()

    def remove(self, ticket: Ticket) -> bool:
        """Take out a ticket that does not wait any more."""
        return self._heap.discard(ticket)

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many go before this one."""
        return self._heap.ahead_of(ticket)
