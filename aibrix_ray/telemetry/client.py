"""A follower of Telemetry, as each gateway has one: a long poll that outlives the actor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from aibrix_ray.telemetry import detached, wire
from aibrix_ray.telemetry.actor import ensure_telemetry
from aibrix_ray.telemetry.condition import Condition
from aibrix_ray.telemetry.store import Update, Version
from aibrix_ray.telemetry.windows import WINDOW_S, LoadWindow
from aibrix_ray.types import GroupInfo

logger = logging.getLogger(__name__)

#: An answer comes at least this often, so `age_s` of a sound connection stays below it.
POLL_S = 2.0
_GRACE_S = 3.0
_MIN_BACK_OFF_S = 0.1
_MAX_BACK_OFF_S = 2.0


class TelemetryFollower:
    """Calls `on_update` with each update, in order, on the event loop that called `start`.

    The first update is the whole state (`ready` is set after it), as is the first one after
    Telemetry began anew, whose groups then include those that only this follower still knew. A
    failing connection is tried again without end; meanwhile nothing is called and `age_s` grows. If
    `on_update` raises, that is logged and the next update is the whole state again.
    """

    def __init__(
        self,
        on_update: Callable[[Update], None],
        *,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = asyncio.Event()
        self._on_update = on_update
        self._poll_s = poll_s
        self._clock = clock
        self._contact_s = float("-inf")
        self._telemetry: Any = None
        self._version: Version | None = None
        self._incarnation = ""
        self._groups: dict[str, GroupInfo] = {}
        self._connection = Condition("telemetry", __name__, expected=detached.UNREACHABLE)
        self._application = Condition("applying an update", __name__)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow; makes Telemetry if there is none."""
        assert self._task is None, "the follower was started twice"
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        """End; `on_update` is not called any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def age_s(self, now_s: float) -> float:
        """Return how long ago Telemetry answered, on the follower's clock; infinite at first."""
        return now_s - self._contact_s

    async def _follow(self) -> None:
        back_off_s = _MIN_BACK_OFF_S
        while True:
            if await self._follow_once():
                back_off_s = _MIN_BACK_OFF_S
            else:
                await asyncio.sleep(back_off_s)
                back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)

    async def _follow_once(self) -> bool:
        try:
            update = await self._next_update()
        # The rim of the task: a gateway goes on without Telemetry, whatever happened to it.
        except Exception as error:
            self._telemetry = None
            self._connection.bad(error)
            return False
        self._connection.good()
        try:
            self._deliver(update)
        # What became of it is unknown: begin again with the whole state.
        except Exception as error:
            self._version = None
            self._application.bad(error)
            return False
        self._application.good()
        return True

    async def _next_update(self) -> Update:
        if self._telemetry is None:
            self._telemetry = await asyncio.to_thread(ensure_telemetry)
        update = await self._poll(self._version)
        if update.full and self._incarnation not in ("", update.version.incarnation):
            await self._bring_back_groups(update)
            update = await self._poll(None)
        return update

    async def _poll(self, since: Version | None) -> Update:
        payload = await detached.result(
            self._telemetry.poll.remote(since, self._poll_s), timeout_s=self._poll_s + _GRACE_S
        )
        self._contact_s = self._clock()
        return wire.decode_update(payload)

    async def _bring_back_groups(self, update: Update) -> None:
        told = {g.name for g in update.groups or ()}
        lost = tuple(g for name, g in self._groups.items() if name not in told)
        if lost:
            logger.info("bringing back groups count=%d first=%s", len(lost), lost[0].name)
            await detached.result(self._telemetry.restore_groups.remote(lost), timeout_s=_GRACE_S)

    def _deliver(self, update: Update) -> None:
        self._version, self._incarnation = update.version, update.version.incarnation
        if update.groups is not None:
            self._groups = {g.name: g for g in update.groups}
        if update.full or update.replicas or update.removed or update.groups is not None:
            self._on_update(update)
            self.ready.set()


async def fetch_snapshot(telemetry: Any, *, timeout_s: float = 5.0) -> Update:
    """Return everything that Telemetry knows."""
    return wire.decode_update(
        await detached.result(telemetry.snapshot.remote(), timeout_s=timeout_s)
    )


async def fetch_group_windows(
    telemetry: Any, *, window_s: float = WINDOW_S, timeout_s: float = 5.0
) -> list[LoadWindow]:
    """Return the load window of each group."""
    reference = telemetry.windows.remote(window_s)
    return wire.decode_windows(await detached.result(reference, timeout_s=timeout_s))


async def fetch_replica_windows(
    telemetry: Any, *, window_s: float = WINDOW_S, timeout_s: float = 5.0
) -> list[LoadWindow]:
    """Return the load window of each replica."""
    reference = telemetry.replica_windows.remote(window_s)
    return wire.decode_windows(await detached.result(reference, timeout_s=timeout_s))
