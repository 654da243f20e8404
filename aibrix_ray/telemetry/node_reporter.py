"""The detached actor of a node that gathers its replicas' figures and hands them to Telemetry.

One batched call a node and period instead of one a replica, because what an actor can take is a few
thousand calls a second, whatever their size. Reads nothing of what it passes on.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aibrix_ray import __version__
from aibrix_ray.telemetry import detached, wire
from aibrix_ray.telemetry.actor import ensure_telemetry
from aibrix_ray.telemetry.buffer import ReportBuffer
from aibrix_ray.telemetry.condition import Condition
from aibrix_ray.telemetry.hub import MIN_PERIOD_S, Reply

#: The reporter ends itself when no replica was heard for this long.
IDLE_S = 60.0
#: Replicas of a node hand in at 4 Hz each; where there are very many, at 500 a second in all.
_PERIOD_PER_REPLICA_S = 0.002
_JANITOR_S = 1.0
_CALL_TIMEOUT_S = 5.0
_MAX_BACK_OFF_S = 2.0


class PutReply(NamedTuple):
    """The reporter's answer to a replica: when to come again, and what is missing."""

    period_s: float
    knows_group: bool
    delivered: bool


def ensure_reporter(node_id: str, *, timeout_s: float = 30.0) -> Any:
    """Return the handle of a node's reporter; makes it if need be. May block for seconds.

    Raises:
        TimeoutError: none answered in time.
    """
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return detached.ensure(
        detached.DetachedActor(f"reporter-{node_id}", NodeReporter, place), timeout_s=timeout_s
    )


class NodeReporter(detached.Versioned):
    """The actor of one node that gathers its replicas' stats and sends them a period at a time."""

    def __init__(self, *, idle_limit_s: float = IDLE_S, code_version: str = __version__) -> None:
        self._code_version = code_version
        self._idle_limit_s = idle_limit_s
        self._buffer = ReportBuffer()
        self._heard_s = time.monotonic()
        self._telemetry: Any = None
        self._incarnation = ""
        self._period_s = MIN_PERIOD_S
        self._unsent = asyncio.Event()
        self._sending = asyncio.Lock()
        self._condition = Condition("telemetry", __name__, expected=detached.UNREACHABLE)
        self._me = detached.myself()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._send_forever()), loop.create_task(self._clean())]

    async def put(
        self, replica_id: str, stats: bytes, group: bytes | None = None, *, urgent: bool = False
    ) -> PutReply:
        """Take a replica's newest stats; its group once, where the reply says it is not known.

        With `urgent` they are sent before this returns, and `delivered` tells whether they arrived.
        """
        now_s = time.monotonic()
        self._heard_s = now_s
        self._buffer.put(replica_id, stats, now_s)
        if group is not None:
            self._buffer.put_group(replica_id, group)
        self._unsent.set()
        delivered = await self._send() if urgent else False
        period_s = max(MIN_PERIOD_S, len(self._buffer) * _PERIOD_PER_REPLICA_S)
        return PutReply(period_s, self._buffer.knows_group(replica_id), delivered)

    async def _send_forever(self) -> None:
        back_off_s = MIN_PERIOD_S
        while True:
            await self._unsent.wait()
            if await self._send():
                back_off_s = MIN_PERIOD_S
                await asyncio.sleep(self._period_s)
            else:
                await asyncio.sleep(back_off_s)
                back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)

    async def _send(self) -> bool:
        async with self._sending:
            self._unsent.clear()
            if not self._buffer.has_unsent():
                return True
            try:
                if await self._report() != self._incarnation:
                    # Telemetry began anew: everything again. At first contact it is all new anyway.
                    self._buffer.give_back()
                    self._incarnation = await self._report()
            # The rim of the actor: whatever failed, the same is tried again.
            except Exception as error:
                self._telemetry = None
                self._buffer.give_back()
                self._unsent.set()
                self._condition.bad(error)
                return False
            self._condition.good()
            return True

    async def _report(self) -> str:
        if self._telemetry is None:
            self._telemetry = await asyncio.to_thread(ensure_telemetry)
        stats, groups = self._buffer.take()
        reply: Reply = await detached.result(
            self._telemetry.report.remote(
                wire.encode_batch(stats), wire.encode_batch(groups) if groups else b""
            ),
            timeout_s=_CALL_TIMEOUT_S,
        )
        self._period_s = reply.period_s
        return reply.incarnation

    async def _clean(self) -> None:
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(_JANITOR_S)
            now_s = time.monotonic()
            if now_s - looked_s < 3 * _JANITOR_S:  # Else we were the one asleep.
                self._buffer.forget_unheard(now_s)
                if now_s - self._heard_s > self._idle_limit_s:
                    await detached.end(self._me)
            looked_s = now_s
