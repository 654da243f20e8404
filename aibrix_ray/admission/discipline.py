"""The protocol of a queueing discipline."""

from __future__ import annotations

from typing import Protocol

from aibrix_ray.admission.ticket import Ticket


class Discipline(Protocol):
    """Decides which of the waiting tickets goes next. Pure: no clock, no I/O, no chance of its own.

    One object serves one model in one gateway. It holds each ticket from `push` until `pop` or
    `remove`; how many there may be and when one has waited for too long is not its business. All
    operations should be O(log n), `ahead_of` apart.
    """

    def __len__(self) -> int:
        """Return how many tickets wait."""
        ...

    def push(self, ticket: Ticket) -> None:
        """Take a ticket in."""
        ...

    def pop(self, now_s: float) -> Ticket | None:
        """Take out the ticket that goes next, or return `None` if none waits."""
        ...

    def remove(self, ticket: Ticket) -> bool:
        """Take out a ticket that does not wait any more; return whether it was there."""
        ...

    def ahead_of(self, ticket: Ticket) -> int:
        """Return how many of the waiting tickets would go before this one as things stand."""
        ...
