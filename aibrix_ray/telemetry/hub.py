"""The Telemetry actor without Ray: a store, the polls that wait on it, and its signs of life."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aibrix_ray.telemetry import wire
from aibrix_ray.telemetry.store import TelemetryStore, Version
from aibrix_ray.telemetry.windows import WINDOW_S
from aibrix_ray.types import GroupInfo

logger = logging.getLogger(__name__)

#: Followers are woken at most this often, however many reports come in ...
COALESCE_S = 0.25
#: ... and less often where they are very many: this long for each of them, so 500 answers a second.
COALESCE_PER_FOLLOWER_S = 0.002
#: A young hub lets the reporters come back before it tells the followers of its predecessor that
#: it knows nothing.
SETTLE_S = 0.5
#: No poll is held for longer, so that a dead follower is not taken for alive.
MAX_POLL_S = 30.0
#: A reporter makes one call in max(MIN_PERIOD_S, replicas x PERIOD_PER_REPLICA_S).
MIN_PERIOD_S = 0.25
PERIOD_PER_REPLICA_S = 0.0005


@dataclass(frozen=True, slots=True)
class Reply:
    """Telemetry's answer to a report: who it is, and when the next report is welcome."""

    incarnation: str
    period_s: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the hub has done and holds, for tests, measurements and the status command."""

    incarnation: str
    number: int
    replicas: int
    groups: int
    waiting_polls: int
    reports: int
    stats_merged: int
    wake_ups: int
    idle_s: float


class Hub:
    """Merges reports and answers long polls; everything runs on one event loop.

    Polls see what is *published*, and the store is published at most once in `coalesce_s`: so all
    followers ask for the same difference at the same moment, and it is computed and encoded once.
    """

    def __init__(
        self,
        store: TelemetryStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        coalesce_s: float = COALESCE_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._coalesce_s = coalesce_s
        now_s = clock()
        self._settled_s = now_s + settle_s
        self._life_s = now_s
        self._published = store.version.number
        self._published_s = float("-inf")
        self._publishing: asyncio.TimerHandle | None = None
        self._wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cache: dict[int | None, bytes] = {}
        self._cached_number = -1
        self._cached_s = now_s
        self._waiting = 0
        self._followers = 0
        self._reports = 0
        self._merged = 0
        self._wake_ups = 0

    def report(self, batch: bytes, groups: bytes = b"") -> Reply:
        """Take one reporter's batch of stats, and the groups that it knows of if there are any."""
        self._reports += 1
        now_s = self._live()
        stats, unreadable = wire.decode_batch(batch)
        if unreadable:
            logger.warning("left out unreadable stats count=%d", unreadable)
        self._merged += self._store.merge(stats, now_s)
        if groups:
            self._store.restore_groups(wire.decode_groups(groups), now_s)
        self._changed()
        period_s = max(MIN_PERIOD_S, self._store.replica_count * PERIOD_PER_REPLICA_S)
        return Reply(self._store.version.incarnation, period_s)

    def register_group(self, info: GroupInfo) -> None:
        """Take a group's registration, or its heartbeat."""
        self._store.register_group(info, self._live())
        self._changed()

    def restore_groups(self, infos: Iterable[GroupInfo]) -> None:
        """Take groups from a follower that knew them before this incarnation began."""
        self._store.restore_groups(infos, self._live())
        self._changed()

    def deregister_group(self, name: str) -> None:
        """Forget a group. No sign of life: an application says goodbye."""
        self._store.deregister_group(name, self._clock())
        self._changed()

    def applications_alive(self, names: Iterable[str]) -> tuple[str, ...]:
        """Forget the groups whose application is not named; return them."""
        gone = self._store.applications_alive(names, self._clock())
        self._changed()
        return gone

    async def poll(self, since: Version | None, timeout_s: float) -> bytes:
        """Return an encoded `Update`: at once if there is news, else at the next, or empty."""
        self._waiting += 1
        self._live()
        try:
            await self._wait_for_news(since, min(timeout_s, MAX_POLL_S))
        finally:
            self._waiting -= 1
        self._live()
        return self._encoded(since)

    def snapshot(self) -> bytes:
        """Return everything as an encoded `Update`. No sign of life: anyone may look."""
        return wire.encode_update(self._store.changes_since(None, self._clock()))

    def group_windows(self, window_s: float = WINDOW_S) -> bytes:
        """Return the encoded load windows of all groups. No sign of life."""
        return wire.encode_windows(self._store.group_windows(self._clock(), window_s=window_s))

    def replica_windows(self, window_s: float = WINDOW_S) -> bytes:
        """Return the encoded load windows of all replicas. No sign of life."""
        return wire.encode_windows(self._store.replica_windows(self._clock(), window_s=window_s))

    def expire(self) -> None:
        """Forget the replicas that are unheard."""
        gone = self._store.expire(self._clock())
        if gone:
            logger.info("forgot unheard replicas count=%d first=%s", len(gone), gone[0])
            self._changed()

    def idle_s(self) -> float:
        """Return how long ago the last sign of life was: a report, a registration or a poll."""
        return self._clock() - self._life_s

    def statistics(self) -> Statistics:
        """Return what the hub has done and holds."""
        version = self._store.version
        return Statistics(
            incarnation=version.incarnation,
            number=version.number,
            replicas=self._store.replica_count,
            groups=self._store.group_count,
            waiting_polls=self._waiting,
            reports=self._reports,
            stats_merged=self._merged,
            wake_ups=self._wake_ups,
            idle_s=self.idle_s(),
        )

    def _live(self) -> float:
        self._life_s = self._clock()
        return self._life_s

    def _changed(self) -> None:
        if self._publishing is None and self._store.version.number != self._published:
            pause_s = max(self._coalesce_s, self._followers * COALESCE_PER_FOLLOWER_S)
            wait_s = max(0.0, self._published_s + pause_s - self._clock())
            self._publishing = asyncio.get_running_loop().call_later(wait_s, self._publish)

    def _publish(self) -> None:
        self._publishing = None
        self._published = self._store.version.number
        self._published_s = self._clock()
        self._wake_ups += 1
        self._followers = self._waiting
        woken, self._wake = self._wake, asyncio.get_running_loop().create_future()
        woken.set_result(None)

    async def _wait_for_news(self, since: Version | None, timeout_s: float) -> None:
        if since is None:
            return
        if since.incarnation != self._store.version.incarnation:
            await asyncio.sleep(min(timeout_s, self._settled_s - self._clock()))
            return
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while since.number >= self._published and self._store.can_follow(since):
            left_s = until_s - loop.time()
            if left_s <= 0:
                return
            await asyncio.wait([self._wake], timeout=left_s)

    def _encoded(self, since: Version | None) -> bytes:
        now_s, version = self._clock(), self._store.version
        # The ages in a cached answer may be old by as much as its time to live.
        if version.number != self._cached_number or now_s - self._cached_s > self._coalesce_s:
            self._cache.clear()
            self._cached_number, self._cached_s = version.number, now_s
        key = since.number if since is not None and self._store.can_follow(since) else None
        payload = self._cache.get(key)
        if payload is None:
            payload = wire.encode_update(self._store.changes_since(since, now_s))
            self._cache[key] = payload
        return payload
