from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aibrix_ray.telemetry import Update, wire
from tests.telemetry.figures import make_group, make_stats
from tests.telemetry.following import DEADLINE_S, KILLS, View, following

pytestmark = pytest.mark.ray


async def make_telemetry() -> Any:
    from aibrix_ray.telemetry.actor import ensure_telemetry

    return await asyncio.to_thread(ensure_telemetry)


def make_batch(**fields: Any) -> bytes:
    return wire.encode_batch([wire.encode_stats(make_stats(**fields))])


async def test_a_follower_makes_telemetry_and_begins_with_the_whole_state(cluster: Any) -> None:
    async with following() as view:
        assert view.updates[0].full


async def test_a_report_reaches_followers_by_the_poll_that_waits_for_it(cluster: Any) -> None:
    async with following() as one, following() as other:
        telemetry = await make_telemetry()
        await telemetry.report.remote(make_batch(running=3))
        for view in (one, other):
            await view.until(lambda view=view: "r1" in view.replicas)  # type: ignore[misc]
            assert view.replicas["r1"].running == 3


async def test_the_age_is_that_of_the_last_answer(cluster: Any) -> None:
    from aibrix_ray.telemetry.client import TelemetryFollower

    follower = TelemetryFollower(lambda _: None, poll_s=0.1)
    assert follower.age_s(time.monotonic()) == float("inf")
    follower.start()
    await asyncio.wait_for(follower.ready.wait(), DEADLINE_S)
    assert 0 <= follower.age_s(time.monotonic()) < 5
    await follower.stop()
    assert follower.age_s(time.monotonic() + 100) > 100


async def test_a_failing_consumer_is_given_the_whole_state_again(cluster: Any) -> None:
    from aibrix_ray.telemetry.client import TelemetryFollower

    view, failures = View(), iter([True, True])

    def apply(update: Update) -> None:
        if next(failures, False):
            raise RuntimeError("a bug in the gateway")
        view.apply(update)

    follower = TelemetryFollower(apply)
    follower.start()
    await asyncio.wait_for(follower.ready.wait(), DEADLINE_S)
    await follower.stop()
    assert view.updates[0].full


@pytest.mark.parametrize("kill", KILLS)
async def test_after_its_death_followers_bring_back_the_groups_at_zero_replicas(
    cluster: Any, kill: Callable[[Any, Any], Awaitable[None]]
) -> None:
    async with following() as view:
        telemetry = await make_telemetry()
        await telemetry.register_group.remote(make_group("idle"))
        await view.until(lambda: "idle" in view.groups)
        seen = len(view.updates)
        await kill(cluster, telemetry)
        await view.until(lambda: len(view.incarnations) == 2)
        assert view.updates[seen].full
        assert "idle" in view.groups
        assert all(u.groups is None or u.groups for u in view.updates[seen:])
        telemetry = await make_telemetry()
        whole = wire.decode_update(await telemetry.snapshot.remote())
        assert whole.groups == (make_group("idle"),)
        await telemetry.report.remote(make_batch(sequence=2))
        await view.until(lambda: "r1" in view.replicas)


async def test_a_hanging_actor_makes_the_age_grow_and_is_followed_again(cluster: Any) -> None:
    import os
    import signal

    from aibrix_ray.telemetry.client import TelemetryFollower

    view = View()
    follower = TelemetryFollower(view.apply, poll_s=0.2)
    follower.start()
    await asyncio.wait_for(follower.ready.wait(), DEADLINE_S)
    telemetry = await make_telemetry()
    pid = await telemetry.pid.remote()
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while follower.age_s(time.monotonic()) < 1:
                await asyncio.sleep(0.02)
    finally:
        os.kill(pid, signal.SIGCONT)
    await telemetry.report.remote(make_batch())
    await view.until(lambda: "r1" in view.replicas)
    assert len(view.incarnations) == 1
    await follower.stop()
