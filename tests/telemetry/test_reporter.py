from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from aibrix_ray.telemetry import wire
from aibrix_ray.types import ReplicaStats
from tests.telemetry.figures import make_group, make_stats
from tests.telemetry.following import KILLS, following, until

pytestmark = pytest.mark.ray


class FakeEngine:
    """Counts its reports as an engine does; a test turns the figures."""

    def __init__(self, replica_id: str = "r1") -> None:
        self.now = make_stats(replica_id, 0)
        self.error: Exception | None = None

    def __call__(self) -> ReplicaStats:
        if self.error is not None:
            raise self.error
        self.now = replace(self.now, sequence=self.now.sequence + 1)
        return self.now

    def turn(self, **figures: Any) -> None:
        self.now = replace(self.now, **figures)


class Replica:
    """An engine that reports, as within a replica."""

    def __init__(self, replica_id: str = "r1") -> None:
        from aibrix_ray.telemetry.reporter import ReplicaReporting

        self.engine = FakeEngine(replica_id)
        self.reporting = ReplicaReporting()

    async def __aenter__(self) -> Replica:
        self.reporting.start(self.engine, make_group())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.reporting.stop()


def my_node(cluster: Any) -> str:
    node_id: str = cluster.get_runtime_context().get_node_id()
    return node_id


async def reporter_of(node_id: str) -> Any:
    from aibrix_ray.telemetry.reporter import ensure_reporter

    return await asyncio.to_thread(ensure_reporter, node_id)


async def telemetry_now() -> Any:
    from aibrix_ray.telemetry.actor import ensure_telemetry

    return await asyncio.to_thread(ensure_telemetry)


async def test_what_an_engine_says_reaches_a_follower_with_its_group(cluster: Any) -> None:
    async with following() as view, Replica() as replica:
        replica.engine.turn(running=5, kv_usage=0.5)
        await view.until(lambda: "r1" in view.replicas and view.replicas["r1"].running == 5)
        assert view.groups == {"g": make_group()}
        replica.engine.turn(running=2)
        await view.until(lambda: view.replicas["r1"].running == 2)


async def test_replicas_of_a_node_share_one_reporter_and_its_calls(cluster: Any) -> None:
    async with following() as view, Replica("r1"), Replica("r2"), Replica("r3"):
        await view.until(lambda: len(view.replicas) == 3)
        telemetry = await telemetry_now()
        before = await telemetry.statistics.remote()

        async def more_was_merged() -> bool:
            now = await telemetry.statistics.remote()
            return bool(now.stats_merged >= before.stats_merged + 6)

        await until(more_was_merged)
        after = await telemetry.statistics.remote()
        assert after.reports - before.reports <= after.stats_merged - before.stats_merged
    names = [a["name"] for a in cluster.util.list_named_actors(all_namespaces=True)]
    assert sorted(names) == [f"reporter-{my_node(cluster)}", "telemetry"]


async def test_flush_returns_when_telemetry_has_it(cluster: Any) -> None:
    async with following() as view, Replica() as replica:
        await view.until(lambda: "r1" in view.replicas)
        telemetry = await telemetry_now()
        replica.engine.turn(draining=True)
        assert await replica.reporting.flush()
        whole = wire.decode_update(await telemetry.snapshot.remote())
        assert whole.replicas[0].draining
        await view.until(lambda: view.replicas["r1"].draining)


async def test_flush_works_after_stop(cluster: Any) -> None:
    async with following() as view:
        async with Replica() as replica:
            await view.until(lambda: "r1" in view.replicas)
        replica.engine.turn(draining=True)
        assert await replica.reporting.flush()
        await view.until(lambda: view.replicas["r1"].draining)


async def test_an_engine_that_raises_does_not_end_the_reporting(
    cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with following() as view, Replica() as replica:
        await view.until(lambda: "r1" in view.replicas)
        replica.engine.error = RuntimeError("the engine is confused")
        assert not await replica.reporting.flush()
        assert [r.message for r in caplog.records if "engine stats" in r.message] == [
            "failing, retried until it works subject=engine stats "
            "error=RuntimeError: the engine is confused"
        ]
        replica.engine.error = None
        replica.engine.turn(running=9)
        await view.until(lambda: view.replicas["r1"].running == 9)


@pytest.mark.parametrize("kill", KILLS)
async def test_after_telemetrys_death_everything_is_reported_again(
    cluster: Any, kill: Callable[[Any, Any], Awaitable[None]]
) -> None:
    async with following() as view, Replica("r1"), Replica("r2"):
        await view.until(lambda: len(view.replicas) == 2)
        await kill(cluster, await telemetry_now())
        await view.until(lambda: len(view.incarnations) == 2 and len(view.replicas) == 2)
        assert view.groups == {"g": make_group()}


@pytest.mark.parametrize("kill", KILLS)
async def test_after_the_reporters_death_replicas_make_it_anew(
    cluster: Any, kill: Callable[[Any, Any], Awaitable[None]]
) -> None:
    async with following() as view, Replica() as replica:
        await view.until(lambda: "r1" in view.replicas)
        await kill(cluster, await reporter_of(my_node(cluster)))
        replica.engine.turn(running=7)
        await view.until(lambda: view.replicas["r1"].running == 7)
        assert len(view.incarnations) == 1


async def test_flush_gets_through_as_soon_as_a_dead_reporter_is_made_anew(cluster: Any) -> None:
    async with following() as view, Replica() as replica:
        await view.until(lambda: "r1" in view.replicas)
        cluster.kill(await reporter_of(my_node(cluster)), no_restart=True)
        replica.engine.turn(draining=True)
        await until(replica.reporting.flush)
        await view.until(lambda: view.replicas["r1"].draining)


async def test_an_engine_restarted_in_place_is_a_new_epoch_within_a_period(cluster: Any) -> None:
    async with following() as view, Replica() as replica:
        replica.engine.turn(sequence=900, running=8)
        await view.until(lambda: "r1" in view.replicas and view.replicas["r1"].running == 8)
        replica.engine.turn(epoch="e2", sequence=0, running=0)
        await view.until(lambda: view.replicas["r1"].epoch == "e2")
        assert view.replicas["r1"].running == 0


async def test_a_reporter_that_nobody_speaks_to_ends_itself(cluster: Any) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from aibrix_ray.telemetry import detached
    from aibrix_ray.telemetry.reporter import NodeReporter

    place = NodeAffinitySchedulingStrategy(my_node(cluster), soft=False)
    actor = detached.DetachedActor("reporter-idle", NodeReporter, place, {"idle_limit_s": 1.0})
    await asyncio.to_thread(detached.ensure, actor)

    async def is_gone() -> bool:
        return detached.find("reporter-idle") is None

    await until(is_gone)
