"""`least-request`: the replica that holds the fewest requests. AIBrix's strategy of that name.

AIBrix counts in-flight requests per gateway and lets a periodic sum overwrite them, so the value
flickers. Here a replica's load is its own report plus this gateway's requests since then.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from aibrix_ray.routing.policy import POLICIES
from aibrix_ray.types import Decision, Outcome, ReplicaView, RequestView, Verdict


@POLICIES.register("least-request")
class LeastRequest:
    """Send to the least `load`; ties are broken by a rotating start, so an idle fleet is shared."""

    def __init__(self, *, seed: int) -> None:
        # Gateways start at different places: at low load all would pick the first replica.
        self._next = random.Random(seed).randrange(1 << 16)

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        """Return the least loaded replica."""
        count = len(replicas)
        start = self._next % count
        self._next = start + 1
        best = replicas[start]
        least = best.in_flight + best.load_base
        for offset in range(1 - count, 0):
            replica = replicas[start + offset]
            load = replica.in_flight + replica.load_base
            if load < least:
                best, least = replica, load
        return Decision(Verdict.SEND, best, "least load")

    def observe(self, outcome: Outcome) -> None:
        """Do nothing: the fleet view already holds the counts."""
