"""One step of an engine, before and after it ran."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from aibrix_ray.engine_model.request import EngineRequest


class Step:
    """What the engine computes next, and for how long.

    A step is one round: each decoding sequence makes one token, and `chunks` are prefilled. Where
    nothing else can happen meanwhile, a simulator may ask for several `rounds` at once.
    """

    __slots__ = ("chunks", "decodes", "first_s", "growth_s", "preempted", "rounds")

    def __init__(
        self,
        *,
        chunks: Sequence[tuple[EngineRequest, int]],
        decodes: int,
        preempted: Sequence[EngineRequest],
        first_s: float,
        growth_s: float,
        rounds: int,
    ) -> None:
        self.chunks = chunks
        self.decodes = decodes
        self.preempted = preempted
        #: The first round's duration; each further one takes `growth_s` longer than the one before.
        self.first_s = first_s
        self.growth_s = growth_s
        self.rounds = rounds

    @property
    def duration_s(self) -> float:
        """Time until the step is complete."""
        return self._until(self.rounds)

    def cut(self, elapsed_s: float) -> None:
        """End the step with the round that is under way `elapsed_s` after its start.

        For a simulator to which something (an arrival, an abort) happens in the middle of it.
        """
        self.rounds = 1 + bisect_left(range(1, self.rounds), elapsed_s, key=self._until)

    def _until(self, rounds: int) -> float:
        return rounds * self.first_s + self.growth_s * (rounds * (rounds - 1) / 2)


class StepEvents:
    """What a complete step brought about.

    Each sequence of `first_tokens` made its first token. Every sequence of `finished` made its last
    one. `tokens` counts the tokens made in all: one a round by each sequence that is decoding
    afterwards or has finished.
    """

    __slots__ = ("finished", "first_tokens", "preempted", "tokens")

    def __init__(self, preempted: Sequence[EngineRequest]) -> None:
        self.tokens = 0
        self.first_tokens: list[EngineRequest] = []
        self.finished: list[EngineRequest] = []
        self.preempted = preempted
