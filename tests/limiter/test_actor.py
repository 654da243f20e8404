"""The Limiter actor on a local Ray, and gateways that outlive it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from aibrix_ray.limiter import GatewayLimiter
from aibrix_ray.limits import excess
from aibrix_ray.types import Usage
from tests.limiter.asking import ask, burst, tenant
from tests.telemetry.following import until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
async def gateways(cluster: Any, make_limiter: Any) -> list[GatewayLimiter]:
    from aibrix_ray.limiter.actor import ActorAuthority

    made: list[GatewayLimiter] = [await make_limiter(ActorAuthority()) for _ in range(2)]
    # A limiter that just began grants slots once it knows that nobody holds any.
    await until(lambda: _grants_slots(made))
    return made


async def _grants_slots(gateways: list[GatewayLimiter]) -> bool:
    found = await burst(gateways, 2, tenant=tenant("probe", max_concurrent=2))
    for item in found:
        item.settle(None)
    return len(found) == 2


async def pid_of_the_limiter() -> int:
    from aibrix_ray.limiter.actor import ensure_limiter
    from aibrix_ray.telemetry import detached

    limiter = await asyncio.to_thread(ensure_limiter)
    pid: int = await detached.result(limiter.pid.remote(), timeout_s=20)
    return pid


async def test_there_is_one_and_its_process_is_called_limiter(
    gateways: list[GatewayLimiter],
) -> None:
    from aibrix_ray.limiter.actor import ensure_limiter

    assert all(gateway.reachable for gateway in gateways)
    assert ensure_limiter() == ensure_limiter()
    command = Path(f"/proc/{await pid_of_the_limiter()}/cmdline").read_bytes()
    assert command.startswith(b"ray::Limiter")


@pytest.mark.parametrize("how", ["SIGKILL", "gone for good"])
async def test_nothing_is_lost_when_it_is_killed(
    cluster: Any, gateways: list[GatewayLimiter], how: str
) -> None:
    """What is spent stays spent, who is under way still counts, and it is made anew."""
    from aibrix_ray.limiter.actor import ensure_limiter

    who = tenant(requests_per_minute=100, max_concurrent=40)
    began_s = time.monotonic()
    held = await burst(gateways, 200, tenant=who)
    assert len(held) == 40
    before = await pid_of_the_limiter()
    if how == "SIGKILL":
        os.kill(before, signal.SIGKILL)
    else:
        cluster.kill(await asyncio.to_thread(ensure_limiter), no_restart=True)
    assert await burst(gateways, 20, tenant=who) == [], "the cap holds while it is away"
    for item in held:
        item.settle(Usage(1, 0, 1))

    async def back() -> bool:
        return all(gateway.reachable for gateway in gateways)

    await until(back)
    assert await pid_of_the_limiter() != before
    admitted = len(held)
    for _ in range(10):
        await asyncio.sleep(0.15)  # Freed slots are told within 50 ms, and 50 ms believed taken.
        found = await burst(gateways, 40, tenant=who)
        assert len(found) <= 40
        for item in found:
            item.settle(Usage(1, 0, 1))
        admitted += len(found)
    passed_s = time.monotonic() - began_s
    assert 90 <= admitted <= 100 + excess(100, 2) + passed_s * 100 / 60


async def test_a_gateway_that_is_killed_leaves_its_slots_to_the_others(
    gateways: list[GatewayLimiter],
) -> None:
    who = tenant(max_concurrent=2)
    held = await burst(gateways[:1], 2, tenant=who)
    assert len(held) == 2
    # As good as killed: it neither says anything any more nor leaves.
    dead = gateways[0]
    assert dead._task is not None
    dead._task.cancel()
    await asyncio.wait([dead._task])
    dead._task = None

    async def taken_over() -> bool:
        return len(await burst(gateways[1:], 1, tenant=who)) == 1

    await until(taken_over)


async def test_it_ends_itself_when_no_gateway_is_heard(cluster: Any) -> None:
    from aibrix_ray.limiter import actor
    from aibrix_ray.telemetry import detached

    place = detached.softly_on_head()
    limits = {"idle_limit_s": 1.0}
    detached.make(detached.DetachedActor(actor.NAME, actor.Limiter, place, limits))

    async def is_gone() -> bool:
        return detached.find(actor.NAME) is None

    await until(is_gone)


async def test_a_refusal_comes_from_what_all_gateways_did(gateways: list[GatewayLimiter]) -> None:
    who = tenant(requests_per_minute=4)
    for gateway in gateways * 2:
        (await ask(gateway, tenant=who)).settle(Usage(1, 0, 1))
    assert await burst(gateways, 6, tenant=who) == []
