"""Starts what is measured, reads its CPU and memory from /proc, and stops it. Knows no peer.

CPU comes from the scheduler, to the nanosecond, where the kernel tells it: in clock ticks, a paced
stream of one client would cost none at all or a hundredth of a second.

Every service is the leader of a session of its own, so "what belongs to it" is a question that
/proc answers: the processes of that session and all their descendants. Nothing else is ever
signalled.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KILL_TIMEOUT_S = 10.0
_ORPHANS_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2_000
_IDLE_LOOK_S = 0.5
_IDLE_CORES = 0.15
_SHARED_MEMORY = re.compile(r"/dev/shm/(?:psm_|sem\.mp-)\w+(?=\n)")


class NotMeasured(RuntimeError):
    """A row could not be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of a service have used so far."""

    cpu_s: Mapping[int, float]
    rss_bytes: int
    nice: int

    def cpu_since(self, earlier: Usage) -> float:
        """Return the CPU seconds used since `earlier` by the processes that are still alive."""
        return sum(cpu_s - earlier.cpu_s.get(pid, 0.0) for pid, cpu_s in self.cpu_s.items())


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc says of one process."""

    pid: int
    state: str
    parent: int
    session: int
    cpu_s: float
    nice: int
    rss_bytes: int
    #: Clock ticks from the machine's start; with the pid it names a process for good.
    started: int


class Service:
    """A running command with its children, reachable once `wait_ready` has returned."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._leader = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    def wait_ready(self, probe: Callable[[], object], *, timeout_s: float) -> float:
        """Call `probe` until it raises nothing, and return how long that took.

        Raises NotMeasured, with the end of the log, when the process ends or the time is up.
        """
        started_s = time.monotonic()
        while True:
            try:
                probe()
            except (OSError, ValueError, NotMeasured) as error:
                if self._leader.poll() is not None:
                    raise NotMeasured(f"{self.name} ended: {self._log_tail()}") from error
                if time.monotonic() - started_s > timeout_s:
                    raise NotMeasured(
                        f"{self.name} not ready in {timeout_s:.0f} s ({error}): {self._log_tail()}"
                    ) from error
                time.sleep(0.1)
            else:
                return time.monotonic() - started_s

    def usage(self) -> Usage:
        """Return the CPU and memory of the service, all its processes together."""
        stats = list(self._members())
        return Usage(
            cpu_s={stat.pid: max(stat.cpu_s, _scheduled_s(stat.pid)) for stat in stats},
            rss_bytes=sum(stat.rss_bytes for stat in stats),
            nice=max((stat.nice for stat in stats), default=0),
        )

    def await_idle(self, *, timeout_s: float) -> None:
        """Wait until it uses next to no CPU: what clients gave up is no part of the next load."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            before = self.usage()
            time.sleep(_IDLE_LOOK_S)
            if self.usage().cpu_since(before) < _IDLE_CORES * _IDLE_LOOK_S:
                return

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the leader politely and, when the time is up, all that is left of its session."""
        shared_memory = self._shared_memory()
        # A child with a session of its own is not found any more once its parent has gone.
        known = {stat.pid: stat.started for stat in self._members()}
        if self._leader.poll() is None:
            self._leader.terminate()
        self._await_end(known, timeout_s)
        for pid in self._left_of(known):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._await_end(known, _KILL_TIMEOUT_S)
        self._leader.wait()
        for path in shared_memory:
            path.unlink(missing_ok=True)  # a killed engine leaves its own behind

    def _await_end(self, known: dict[int, int], timeout_s: float) -> None:
        """Wait until all are gone, or the time is up; children get little of it for themselves."""
        deadline_s = time.monotonic() + timeout_s
        orphaned = False
        while self._left_of(known) and time.monotonic() < deadline_s:
            if self._leader.poll() is not None and not orphaned:
                orphaned = True
                deadline_s = min(deadline_s, time.monotonic() + _ORPHANS_TIMEOUT_S)
            time.sleep(0.05)

    def _left_of(self, known: dict[int, int]) -> list[int]:
        """Return who is still alive, of those known by pid and start time and of those since."""
        for stat in self._members():
            known.setdefault(stat.pid, stat.started)
        return [stat.pid for stat in live_stats() if known.get(stat.pid) == stat.started]

    def _members(self) -> Iterator[Stat]:
        """Yield the live processes of the session, and descendants that left it."""
        family = {self._leader.pid}
        stats = {stat.pid: stat for stat in live_stats()}
        for stat in sorted(stats.values(), key=lambda stat: stat.pid):
            ancestor = stat
            while ancestor.session != self._leader.pid and ancestor.pid not in family:
                parent = stats.get(ancestor.parent)
                if parent is None:
                    break
                ancestor = parent
            else:
                family.add(stat.pid)
                yield stat

    def _shared_memory(self) -> set[Path]:
        """Return the files of Python's shared memory and semaphores that the service has mapped."""
        found = set()
        for stat in self._members():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{stat.pid}/maps").read_text()
                found.update(_SHARED_MEMORY.findall(maps))
        return {Path(name) for name in found}

    def _log_tail(self) -> str:
        return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()


def live_stats() -> Iterator[Stat]:
    """Yield every process of the machine that has not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = _parse_stat(path.read_text())
            if stat.state not in "ZX":
                yield stat


def _scheduled_s(pid: int) -> float:
    """Return the CPU time of a process's live threads; 0 where the kernel does not tell."""
    total_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total_ns += int(path.read_text().split()[0])
    return total_ns / 1e9


def _parse_stat(text: str) -> Stat:
    pid, rest = text.split(" (", 1)
    # The name may hold spaces and brackets; after its last one the fields are plain.
    fields = rest[rest.rindex(")") + 2 :].split()
    return Stat(
        pid=int(pid),
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        cpu_s=(int(fields[11]) + int(fields[12])) * TICK_S,
        nice=int(fields[16]),
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        started=int(fields[19]),
    )


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
