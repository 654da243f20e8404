"""Waiting with a deadline: for an awaitable, or until something holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

#: Far beyond what anything here takes; reached only by a test that fails.
DEADLINE_S = 15.0


async def within(awaitable: Awaitable[T], seconds: float = DEADLINE_S) -> T:
    """Return what `awaitable` gives; fail the test if that takes too long."""
    return await asyncio.wait_for(awaitable, seconds)


async def eventually(
    holds: Callable[[], bool], what: str | Callable[[], str], *, seconds: float = DEADLINE_S
) -> None:
    """Return once `holds()`; fail the test past the deadline."""
    until_s = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until_s:
            pytest.fail(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0.002)


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self._looks = 0

    def __call__(self) -> float:
        self._looks += 1
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    async def looked_at(self) -> None:
        """Return once deadlines have been checked against the time that it is now.

        While nothing else happens only the gateway's sweeper looks at the clock.
        """
        before = self._looks
        await eventually(lambda: self._looks > before + 2, "the sweeper looks at the clock")
