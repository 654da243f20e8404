from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aibrix_ray import __version__
from tests.telemetry.figures import make_group
from tests.telemetry.following import until

pytestmark = pytest.mark.ray


def make_telemetry(**kwargs: Any) -> Any:
    from aibrix_ray.telemetry import actor, detached

    place = detached.softly_on_head()
    return detached.make(detached.DetachedActor(actor.NAME, actor.Telemetry, place, kwargs))


async def is_gone() -> bool:
    from aibrix_ray.telemetry import actor, detached

    return detached.find(actor.NAME) is None


async def test_there_is_none_until_it_is_ensured(cluster: Any) -> None:
    from aibrix_ray.telemetry.actor import NoTelemetry, ensure_telemetry, get_telemetry

    with pytest.raises(NoTelemetry, match="no gateway or replica group runs on this cluster"):
        get_telemetry()
    made = ensure_telemetry()
    assert get_telemetry() == made == ensure_telemetry()


async def test_of_many_that_ensure_it_at_once_all_get_the_same(cluster: Any) -> None:
    from aibrix_ray.telemetry.actor import ensure_telemetry

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: ensure_telemetry(), range(8)))) == 1


async def test_an_older_version_is_replaced_and_a_newer_one_left_alone(cluster: Any) -> None:
    from aibrix_ray.telemetry.actor import ensure_telemetry

    older = make_telemetry(code_version="0.0.1.dev1")
    newer = ensure_telemetry()
    assert newer != older
    assert await newer.code_version.remote() == __version__
    cluster.kill(newer, no_restart=True)
    newest = make_telemetry(code_version="999.0")
    assert ensure_telemetry() == newest


async def test_it_ends_itself_when_nothing_is_heard(cluster: Any) -> None:
    telemetry = make_telemetry(idle_limit_s=1.0)
    statistics = await telemetry.statistics.remote()

    async def outlived_its_limit() -> bool:
        await telemetry.register_group.remote(make_group())  # A sign of life.
        return time.monotonic() - began_s > 2.5

    began_s = time.monotonic()
    await until(outlived_its_limit)
    assert (await telemetry.statistics.remote()).incarnation == statistics.incarnation
    await until(is_gone)
    with pytest.raises(cluster.exceptions.ActorDiedError):
        await telemetry.statistics.remote()


async def test_it_takes_no_cpu_and_survives_the_driver(cluster: Any) -> None:
    from aibrix_ray.telemetry.actor import NAME, ensure_telemetry
    from aibrix_ray.telemetry.detached import NAMESPACE

    ensure_telemetry()
    names = cluster.util.list_named_actors(all_namespaces=True)
    assert {"name": NAME, "namespace": NAMESPACE} in names
    assert cluster.available_resources()["CPU"] == cluster.cluster_resources()["CPU"]


def test_an_actor_that_cannot_begin_is_told_with_the_reason(cluster: Any) -> None:
    from aibrix_ray.telemetry import detached

    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no such library")

        async def code_version(self) -> str:
            return __version__

    broken = detached.DetachedActor("broken", Broken, detached.softly_on_head())
    with pytest.raises(TimeoutError, match="no such library"):
        detached.ensure(broken, timeout_s=5)
