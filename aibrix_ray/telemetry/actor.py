"""The detached Telemetry actor: one an installation, known by its name.

Its state is in memory alone. After its death (Ray restarts it where it was killed or its process or
node died) and after being made anew it knows nothing, under a new *incarnation*. Nobody has to do
anything about it: a reporter sees the incarnation in the reply to its next report and hands in,
within one period, everything it holds, groups included; a follower sees it in its next update,
which is the whole state, and brings back the groups that only it still knew (those at zero
replicas). Meanwhile gateways go on with what they have.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from typing import Any

from aibrix_ray import __version__
from aibrix_ray.errors import AibrixRayError
from aibrix_ray.telemetry import detached
from aibrix_ray.telemetry.hub import Hub, Reply, Statistics
from aibrix_ray.telemetry.store import TelemetryStore, Version
from aibrix_ray.telemetry.windows import WINDOW_S
from aibrix_ray.types import GroupInfo

NAME = "telemetry"
#: The actor ends itself when nothing was heard for this long.
IDLE_S = 60.0
_JANITOR_S = 1.0


class NoTelemetry(AibrixRayError):
    """This cluster has no Telemetry actor: nothing of this package is deployed on it."""


def get_telemetry() -> Any:
    """Return the handle of the Telemetry actor of this cluster. May block.

    Raises:
        NoTelemetry: there is none.
    """
    handle = detached.find(NAME)
    if handle is None:
        raise NoTelemetry(
            "no gateway or replica group runs on this cluster (it has no Telemetry actor); "
            "deploy one: serve run FILE"
        )
    return handle


def ensure_telemetry(*, timeout_s: float = 30.0) -> Any:
    """Return the handle of the Telemetry actor; makes it if need be. May block for seconds.

    An actor of an older version of this package is replaced.

    Raises:
        TimeoutError: none answered in time.
    """
    return detached.ensure(
        detached.DetachedActor(NAME, Telemetry, detached.softly_on_head()), timeout_s=timeout_s
    )


class Telemetry(detached.Versioned):
    """The actor around a `Hub`; see there for what its methods mean."""

    def __init__(self, *, idle_limit_s: float = IDLE_S, code_version: str = __version__) -> None:
        self._code_version = code_version
        self._idle_limit_s = idle_limit_s
        self._hub = Hub(TelemetryStore(uuid.uuid4().hex[:16]))
        self._me = detached.myself()
        self._janitor = asyncio.get_running_loop().create_task(self._clean())

    async def report(self, batch: bytes, groups: bytes = b"") -> Reply:
        """Take a reporter's batch, made with `wire.encode_batch`."""
        return self._hub.report(batch, groups)

    async def register_group(self, info: GroupInfo) -> None:
        """Take a group's registration or heartbeat."""
        self._hub.register_group(info)

    async def restore_groups(self, infos: Iterable[GroupInfo]) -> None:
        """Take back groups from a follower of an earlier incarnation."""
        self._hub.restore_groups(infos)

    async def deregister_group(self, name: str) -> None:
        """Forget a group."""
        self._hub.deregister_group(name)

    async def applications_alive(self, names: Iterable[str]) -> tuple[str, ...]:
        """Forget the groups whose application is not named; return them."""
        return self._hub.applications_alive(names)

    async def poll(self, since: Version | None, timeout_s: float) -> bytes:
        """Return an `Update` for `wire.decode_update`, at the latest after `timeout_s`."""
        return await self._hub.poll(since, timeout_s)

    async def snapshot(self) -> bytes:
        """Return everything as an `Update` for `wire.decode_update`."""
        return self._hub.snapshot()

    async def windows(self, window_s: float = WINDOW_S) -> bytes:
        """Return the groups' load windows for `wire.decode_windows`."""
        return self._hub.group_windows(window_s)

    async def replica_windows(self, window_s: float = WINDOW_S) -> bytes:
        """Return the replicas' load windows for `wire.decode_windows`."""
        return self._hub.replica_windows(window_s)

    async def statistics(self) -> Statistics:
        """Return what the actor has done and holds."""
        return self._hub.statistics()

    async def _clean(self) -> None:
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(_JANITOR_S)
            now_s = time.monotonic()
            # After a pause of this process the reports of that time still wait to be read: the
            # replicas are not dead, we were.
            if now_s - looked_s < 3 * _JANITOR_S:
                self._hub.expire()
                if self._hub.idle_s() > self._idle_limit_s:
                    await detached.end(self._me)
            looked_s = now_s
