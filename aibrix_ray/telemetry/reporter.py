"""The way of a replica's figures to Telemetry: replica → reporter of its node → Telemetry.

`ReplicaReporting` is the replica's side. Everything in between may die: the replica makes its
reporter anew, the reporter Telemetry, and each hands in again what the other has lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from aibrix_ray.telemetry import detached, wire
from aibrix_ray.telemetry.condition import Condition
from aibrix_ray.telemetry.hub import MIN_PERIOD_S
from aibrix_ray.telemetry.node_reporter import NodeReporter, PutReply, ensure_reporter
from aibrix_ray.types import GroupInfo, ReplicaStats

__all__ = ["NodeReporter", "PutReply", "ReplicaReporting", "ensure_reporter"]

#: Unchanged figures are sent at least this often, as a sign of life.
HEARTBEAT_S = 1.0
#: `flush` and `stop` return after this long at the latest.
FLUSH_TIMEOUT_S = 2.0
_CALL_TIMEOUT_S = 5.0
_MAX_BACK_OFF_S = 2.0


class ReplicaReporting:
    """Reports one engine's stats from within its replica, as a task on the replica's event loop.

    Never fails the replica and never blocks its loop: what goes wrong is logged once per change of
    state and tried again. Looking up and making the reporter happens in a thread.

        reporting = ReplicaReporting()
        reporting.start(engine.stats, group)
        ...
        draining = True          # engine.stats now says so
        await reporting.flush()  # Telemetry knows before the replica refuses
        await reporting.stop()
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._engine_stats: Callable[[], ReplicaStats] | None = None
        self._reporter: Any = None
        self._period_s = MIN_PERIOD_S
        self._group_known = False
        self._sent: ReplicaStats | None = None
        self._sent_s = float("-inf")
        self._sending = asyncio.Lock()
        self._engine = Condition("engine stats", __name__)
        self._connection = Condition("reporter", __name__, expected=detached.UNREACHABLE)

    def start(self, engine_stats: Callable[[], ReplicaStats], group: GroupInfo) -> None:
        """Begin to report; `engine_stats` is called on this loop a few times a second."""
        assert self._engine_stats is None, "reporting was started twice"
        self._engine_stats = engine_stats
        self._group = wire.encode_group(group)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._task = asyncio.get_running_loop().create_task(self._report_forever())

    async def flush(self) -> bool:
        """Send the figures of now; return whether Telemetry has them.

        Returns after `FLUSH_TIMEOUT_S` at the latest; never raises for what goes wrong.
        """
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                while not await self._report(urgent=True):
                    await asyncio.sleep(MIN_PERIOD_S)
                return True
        except TimeoutError as error:
            self._connection.bad(error)
            return False

    async def stop(self) -> None:
        """End reporting; the replica is forgotten when its time to live is over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _report_forever(self) -> None:
        back_off_s = MIN_PERIOD_S
        while True:
            if await self._report():
                back_off_s = MIN_PERIOD_S
                await asyncio.sleep(self._period_s)
            else:
                await asyncio.sleep(back_off_s)
                back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)

    async def _report(self, *, urgent: bool = False) -> bool:
        async with self._sending:
            stats = self._read_engine()
            if stats is None:
                return False
            now_s = time.monotonic()
            due = now_s + self._period_s - self._sent_s >= HEARTBEAT_S
            if not (urgent or due) and _same(stats, self._sent):
                return True
            try:
                reply = await self._put(stats, urgent=urgent)
            # Telemetry may never be the reason that a replica fails.
            except Exception as error:
                self._reporter = None
                self._connection.bad(error)
                return False
            self._sent, self._sent_s = stats, now_s
            self._connection.good()
            return reply.delivered or not urgent

    async def _put(self, stats: ReplicaStats, *, urgent: bool) -> PutReply:
        if self._reporter is None:
            self._reporter = await asyncio.to_thread(ensure_reporter, self._node_id)
        encoded = wire.encode_stats(stats)
        for group in (None, self._group) if self._group_known else (self._group,):
            reply: PutReply = await detached.result(
                self._reporter.put.remote(stats.replica_id, encoded, group, urgent=urgent),
                timeout_s=_CALL_TIMEOUT_S,
            )
            self._period_s = reply.period_s
            self._group_known = reply.knows_group
            if reply.knows_group:
                break
        return reply

    def _read_engine(self) -> ReplicaStats | None:
        assert self._engine_stats is not None, "reporting was not started"
        try:
            stats = self._engine_stats()
        # The engine's failures are its health check's business.
        except Exception as error:
            self._engine.bad(error)
            return None
        self._engine.good()
        return stats


def _same(stats: ReplicaStats, other: ReplicaStats | None) -> bool:
    # An engine counts its reports, so the sequence alone is no news.
    return other is not None and stats == replace(other, sequence=stats.sequence)
