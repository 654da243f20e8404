"""Routing policies that a configuration can name by import path."""

from __future__ import annotations

from collections.abc import Sequence

from aibrix_ray.types import Decision, Outcome, ReplicaView, RequestView, Verdict


class First:
    """Sends to the first of the replicas; keeps what it was shown and told."""

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self.requests: list[RequestView] = []
        self.outcomes: list[Outcome] = []

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        self.requests.append(request)
        return Decision(Verdict.SEND, replicas[0])

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class Rejecting(First):
    """Rejects everything."""

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        return Decision(Verdict.REJECT, reason="the tier is full")


class Queueing(First):
    """Lets everything wait until it is told otherwise."""

    open = False

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        if not self.open:
            return Decision(Verdict.QUEUE)
        return super().choose(request, replicas, now_s)


class Broken(First):
    """Fails."""

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        raise ZeroDivisionError("a secret of the policy")
