"""Enacts a plan on a running installation and keeps a diary of what was done to whom, and when.

Times are those of `time.monotonic`. Nothing is harmed before it has a sibling that can take over:
a replica only while two are ready besides, a gateway only while another one lives. The oldest
gateway is never killed, so that there is one whose memory can be watched over the whole soak.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from tests.chaos.schedule import Harm, Planned
from tests.e2e.installation import Installation

_RECOVERY_S = 90.0
#: A client may send on a dead gateway's connection until it has seen that it is closed.
_AFTERMATH_S = 2.0
_DIARY_BEFORE_S = 15.0
#: The title of an actor's process holds the actor's class. A limiter is there only with limits.
_SINGLE = {
    Harm.KILL_TELEMETRY: "ray::Telemetry",
    Harm.KILL_LIMITER: "ray::Limiter",
    Harm.KILL_CONTROLLER: "ServeController",
}
_OPTIONAL = (Harm.KILL_LIMITER,)


@dataclass(slots=True)
class Event:
    """One thing that was done; `pid` is None where there was nobody to do it to."""

    harm: Harm
    pid: int | None
    begun_s: float
    ended_s: float

    def told(self, start_s: float) -> str:
        """Return its line in the diary; times count from `start_s`."""
        who = "nobody of that kind" if self.pid is None else f"pid {self.pid}"
        lasted_s = self.ended_s - self.begun_s
        lasted = f", {lasted_s:.1f} s long" if lasted_s > 0.1 else ""
        return f"{self.begun_s - start_s:7.2f} s  {self.harm}: {who}{lasted}"


class Chaos:
    """The plan, and what has come of it."""

    def __init__(
        self,
        installation: Installation,
        planned: Sequence[Planned],
        *,
        gateways: int,
        replicas: int,
        model: str = "sim",
    ) -> None:
        self._installation = installation
        self._planned = planned
        self._gateways = gateways
        self._replicas = replicas
        self._model = model
        self.start_s = time.monotonic()
        self.events: list[Event] = []

    async def run(self) -> None:
        """Enact the whole plan; a harm for which nobody is left to take over waits.

        Raises:
            AssertionError: the installation did not recover from what was done before.
        """
        self.start_s = time.monotonic()
        for planned in self._planned:
            await asyncio.sleep(self.start_s + planned.at_s - time.monotonic())
            candidates = await self._candidates(planned.harm)
            pid = candidates[int(planned.pick * len(candidates))] if candidates else None
            await self._enact(planned, pid)

    async def recovered(self) -> None:
        """Wait until every gateway and replica is there and routed to."""
        await self._wait_for(self._gateways, self._replicas, "everything is there again")

    def excuses(self, begun_s: float, ended_s: float) -> bool:
        """Tell whether what broke between these times may have been a killed gateway's."""
        return any(
            begun_s <= event.ended_s + _AFTERMATH_S and ended_s >= event.begun_s
            for event in self.events
            if event.harm is Harm.KILL_GATEWAY
        )

    def diary(self, begun_s: float, ended_s: float) -> str:
        """Return what was done shortly before and during these times, one line each."""
        near = [
            event.told(self.start_s)
            for event in self.events
            if begun_s - _DIARY_BEFORE_S <= event.ended_s and event.begun_s <= ended_s
        ]
        return "\n".join(near) or "nothing was done around that time"

    async def _candidates(self, harm: Harm) -> list[int]:
        """Return whom it may be done to, the oldest first."""
        if harm in _SINGLE:
            return await self._single(harm)
        if harm in (Harm.KILL_GATEWAY, Harm.PAUSE_GATEWAY):
            await self._wait_for(2, 1, "two gateways")
            gateways = await asyncio.to_thread(self._installation.gateways)
            return gateways[1:] if harm is Harm.KILL_GATEWAY else gateways
        await self._wait_for(1, self._replicas, "all replicas")
        return await asyncio.to_thread(self._installation.engines, self._model)

    async def _single(self, harm: Harm) -> list[int]:
        until_s = time.monotonic() + (0.0 if harm in _OPTIONAL else _RECOVERY_S)
        while not (found := await asyncio.to_thread(self._installation.pids, _SINGLE[harm])):
            if harm in _OPTIONAL:
                return []
            assert time.monotonic() < until_s, f"{_SINGLE[harm]} was not started again"
            await asyncio.sleep(0.2)
        return found[:1]

    async def _enact(self, planned: Planned, pid: int | None) -> None:
        now_s = time.monotonic()
        # Told before it is done: what breaks at once must find its cause in the diary.
        event = Event(planned.harm, pid, now_s, now_s)
        self.events.append(event)
        if pid is None:
            return
        stops = planned.harm in (Harm.PAUSE_REPLICA, Harm.PAUSE_GATEWAY, Harm.FREEZE_REPLICA)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if stops else signal.SIGKILL)
            if stops and planned.harm is not Harm.FREEZE_REPLICA:
                await asyncio.sleep(planned.pause_s)
                os.kill(pid, signal.SIGCONT)
        event.ended_s = time.monotonic()

    async def _wait_for(self, gateways: int, replicas: int, what: str) -> None:
        until_s = time.monotonic() + _RECOVERY_S
        while not await asyncio.to_thread(self._has, gateways, replicas):
            assert time.monotonic() < until_s, (
                f"not within {_RECOVERY_S:g} s: {what}\n{self.diary(self.start_s, until_s)}"
            )
            await asyncio.sleep(0.3)

    def _has(self, gateways: int, replicas: int) -> bool:
        running = self._installation
        if len(running.gateways()) < gateways or len(running.engines(self._model)) < replicas:
            return False
        with contextlib.suppress(httpx.HTTPError):
            state = httpx.get(f"{running.url}/readyz", timeout=5.0).json()
            return bool(state["ready_replicas"].get(self._model, 0) >= replicas)
        return False
