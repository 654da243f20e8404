"""One request that waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Ticket:
    """What a discipline may know of a request that waits. A ticket is itself, whatever it says.

    Attributes:
        arrived_s: when its request arrived; kept where it has to wait a second time.
        deadline_s: from then on it has waited in vain.
        tenant: whose request it is; "" without keys.
        priority: a higher one goes first.
        expected_tokens: prompt and answer, as far as one can tell beforehand.
        holder: what whoever waits keeps with it; means nothing here.
    """

    arrived_s: float
    deadline_s: float = float("inf")
    tenant: str = ""
    priority: int = 0
    expected_tokens: int = 0
    holder: object = None
