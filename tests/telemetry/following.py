"""A gateway's view, kept by updates, and waiting for it with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aibrix_ray.telemetry import Update
from aibrix_ray.telemetry.client import TelemetryFollower
from aibrix_ray.types import GroupInfo, ReplicaStats

DEADLINE_S = 20.0


class View:
    """Applies updates and lets a test wait until they have made something true."""

    def __init__(self) -> None:
        self.replicas: dict[str, ReplicaStats] = {}
        self.groups: dict[str, GroupInfo] = {}
        self.updates: list[Update] = []
        self._changed = asyncio.Event()

    @property
    def incarnations(self) -> list[str]:
        return list(dict.fromkeys(u.version.incarnation for u in self.updates))

    def apply(self, update: Update) -> None:
        if update.full:
            self.replicas.clear()
        for replica_id in update.removed:
            self.replicas.pop(replica_id, None)
        self.replicas |= {s.replica_id: s for s in update.replicas}
        if update.groups is not None:
            self.groups = {g.name: g for g in update.groups}
        self.updates.append(update)
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def following() -> AsyncIterator[View]:
    """Follow Telemetry; ready when entered."""
    view = View()
    follower = TelemetryFollower(view.apply)
    follower.start()
    try:
        await asyncio.wait_for(follower.ready.wait(), DEADLINE_S)
        yield view
    finally:
        await follower.stop()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again until the answer is yes."""
    async with asyncio.timeout(DEADLINE_S):
        while not await holds():
            await asyncio.sleep(0.02)


async def kill_by_ray(ray: Any, handle: Any) -> None:
    ray.kill(handle, no_restart=False)


async def kill_by_os(_ray: Any, handle: Any) -> None:
    os.kill(await handle.pid.remote(), signal.SIGKILL)


async def kill_for_good(ray: Any, handle: Any) -> None:
    ray.kill(handle, no_restart=True)


KILLS = [kill_by_ray, kill_by_os, kill_for_good]
