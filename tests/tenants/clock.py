"""A clock that a test turns by hand."""

from __future__ import annotations

#: 2026-11-25 10:30 UTC.
START_S = 1_795_602_600.0


class Clock:
    def __init__(self, now_s: float = START_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def turn(self, seconds: float) -> None:
        self.now_s += seconds
