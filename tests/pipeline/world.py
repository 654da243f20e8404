"""One model and one request, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aibrix_ray.pipeline import Life, ModelSettings, ModelState, Wait
from aibrix_ray.types import Decision, Outcome, ReplicaView, RequestView, Verdict


class Scripted:
    """Sends to the first replica it is shown, or decides as it was told to."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.shown: list[list[str]] = []
        self.at_s: list[float] = []
        self.outcomes: list[Outcome] = []

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        self.shown.append([replica.replica_id for replica in replicas])
        self.at_s.append(now_s)
        verdict = self.verdicts.pop(0) if self.verdicts else Verdict.SEND
        return Decision(verdict, replicas[0] if verdict is Verdict.SEND else None, "as told")

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class World:
    """One model `m` with replicas `r0`, `r1`, …; each call of `next` is at `now_s`."""

    def __init__(self, replicas: int = 0, *verdicts: Verdict, **settings: Any) -> None:
        self.policy = Scripted(*verdicts)
        self.model = ModelState("m", self.policy, ModelSettings(**settings))
        self.now_s = 100.0
        self.join(replicas)
        self.life = Life(self.model, RequestView("id", "m"), self.now_s)

    def join(self, count: int) -> None:
        replicas = [ReplicaView(f"r{i}", "g", "m") for i in range(count)]
        self.model.set_members(replicas, replicas)

    def replica(self, index: int) -> ReplicaView:
        return self.model.members[index]

    def next(self) -> ReplicaView | Wait:
        return self.life.next(self.now_s)

    def chosen(self) -> str:
        answer = self.next()
        assert isinstance(answer, ReplicaView)
        return answer.replica_id

    def waits_until(self) -> float:
        answer = self.next()
        assert isinstance(answer, Wait)
        return answer.until_s
