"""The memory of processes over time, and whether it stayed level."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

#: One look: (seconds of `time.monotonic`, bytes).
Look = tuple[float, int]

_PERIOD_S = 1.0


def growth(looks: Sequence[Look], *, warm_up_s: float) -> float | None:
    """Return the median of the last third over that of the first, the warm-up left aside.

    None where fewer than 20 looks came after it: too young a process to say anything of.
    """
    settled = [size for at_s, size in looks if at_s - looks[0][0] >= warm_up_s]
    if len(settled) < 20:
        return None
    third = len(settled) // 3
    return median(settled[-third:]) / median(settled[:third])


class Watch:
    """Looks at the memory of processes, which may come and go, once a second."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self.looks: dict[int, list[Look]] = defaultdict(list)

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def growths(self, *, warm_up_s: float) -> dict[int, float]:
        """Return by what factor each process grew that lived long enough."""
        found = {pid: growth(looks, warm_up_s=warm_up_s) for pid, looks in self.looks.items()}
        return {pid: factor for pid, factor in found.items() if factor is not None}

    async def _run(self) -> None:
        while True:
            for pid in await asyncio.to_thread(self._pids):
                with contextlib.suppress(OSError, StopIteration):
                    self.looks[pid].append((time.monotonic(), _resident_bytes(pid)))
            await asyncio.sleep(_PERIOD_S)


def _resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    # Anonymous memory only: what is mapped from files is shared and comes and goes with them.
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
