"""How much of the machine others used while something was measured.

A load average counts what a benchmark starts as well; this takes the CPU time that is neither this
process's nor its descendants', and what the host took for itself.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from benchmarks.processes import TICK_S, live_stats

#: Above so many cores in the hands of others, figures of a small machine are not worth keeping.
QUIET_CORES = 0.2


class Others:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._foreign_s = _foreign_s()

    def cores(self) -> float:
        """Return how many cores others have kept busy, on average, since this was made."""
        elapsed_s = time.monotonic() - self._started_s
        return max(0.0, _foreign_s() - self._foreign_s) / max(elapsed_s, TICK_S)


def _foreign_s() -> float:
    return _busy_s() - _own_s()


def _busy_s() -> float:
    """Return the CPU time spent in processes, any of them, and stolen by the host."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, _irq, _softirq, stolen = map(int, fields[:8])
    return (user + nice + system + stolen) * TICK_S


def _own_s() -> float:
    """Return the CPU time of this process, its descendants, and those of them that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total_s = ended.ru_utime + ended.ru_stime
    stats = {stat.pid: stat for stat in live_stats()}
    for stat in stats.values():
        ancestor = stat
        while ancestor.pid != os.getpid() and ancestor.parent in stats:
            ancestor = stats[ancestor.parent]
        if ancestor.pid == os.getpid():
            total_s += stat.cpu_s
    return total_s
