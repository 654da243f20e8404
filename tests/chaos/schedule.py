"""What is done to an installation and when, from a seed; the same seed, the same plan. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

#: Between two harms: long enough to see which of them broke something, too short to recover always.
_GAP_S = (3.0, 6.0)
#: Serve replaces what has not answered for some 10 s; a pause ends before.
_PAUSE_S = (1.0, 4.0)


class Harm(StrEnum):
    """One way of harming an installation."""

    KILL_REPLICA = "SIGKILL replica"
    KILL_GATEWAY = "SIGKILL gateway"
    KILL_TELEMETRY = "SIGKILL telemetry actor"
    KILL_LIMITER = "SIGKILL limiter actor"
    KILL_CONTROLLER = "SIGKILL Serve controller"
    PAUSE_REPLICA = "SIGSTOP and SIGCONT replica"
    PAUSE_GATEWAY = "SIGSTOP and SIGCONT gateway"
    FREEZE_REPLICA = "SIGSTOP replica for good"


@dataclass(frozen=True, slots=True)
class Planned:
    """One harm of the plan."""

    at_s: float
    harm: Harm
    #: In [0, 1): which one of the candidates, by their age.
    pick: float
    pause_s: float


def plan(*, seed: int, duration_s: float) -> tuple[Planned, ...]:
    """Return harms from the first seconds until `duration_s`: shuffled decks of all kinds."""
    chance = random.Random(seed)
    planned: list[Planned] = []
    deck: list[Harm] = []
    at_s = chance.uniform(*_GAP_S)
    while at_s < duration_s:
        if not deck:
            deck = list(Harm)
            chance.shuffle(deck)
        planned.append(Planned(at_s, deck.pop(), chance.random(), chance.uniform(*_PAUSE_S)))
        at_s += chance.uniform(*_GAP_S)
    return tuple(planned)
