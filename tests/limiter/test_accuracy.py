"""How exact limits are over two gateways, with each kind of authority."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from aibrix_ray.limiter import Authority, GatewayLimiter
from aibrix_ray.limits import excess
from aibrix_ray.types import Usage
from tests.limiter.asking import burst, tenant
from tests.limiter.authorities import SharedAuthority

MakeAuthority = Callable[[], Authority]


@pytest.fixture(
    params=[
        "in process",
        "redis",
        pytest.param("actor", marks=[pytest.mark.ray, pytest.mark.slow]),
    ]
)
def make_authority(request: pytest.FixtureRequest) -> MakeAuthority:
    """Give one authority for all; each gateway has its own way to it."""
    if request.param == "redis":
        from aibrix_ray.limiter.redis_authority import RedisAuthority

        url = request.getfixturevalue("redis_url")
        return lambda: RedisAuthority(url)
    if request.param == "actor":
        from aibrix_ray.limiter.actor import ActorAuthority

        request.getfixturevalue("cluster")
        return ActorAuthority
    shared = SharedAuthority(time.monotonic)
    return lambda: shared


async def two_gateways(make_limiter: Any, make_authority: MakeAuthority) -> list[GatewayLimiter]:
    return [await make_limiter(make_authority()) for _ in range(2)]


@pytest.mark.parametrize("bursts", [1, 4])
async def test_requests_in_bursts_are_admitted_within_the_bound(
    make_limiter: Any, make_authority: MakeAuthority, bursts: int
) -> None:
    """200 requests against 100 a minute: the bucket, what refills meanwhile, a slice a gateway."""
    limiters = await two_gateways(make_limiter, make_authority)
    who = tenant(requests_per_minute=100)
    began_s = time.monotonic()
    admitted = 0
    for _ in range(bursts):
        found = await burst(limiters, 200 // bursts, tenant=who)
        admitted += len(found)
        for item in found:
            item.settle(Usage(1, 0, 1))
    passed_s = time.monotonic() - began_s
    assert 100 - excess(100, 2) / 2 <= admitted
    assert admitted <= 100 + excess(100, 2) + passed_s * 100 / 60


async def test_tokens_are_exact_after_settlement(
    make_limiter: Any, make_authority: MakeAuthority
) -> None:
    """Every guess is wrong; in the end the limit less what was used is left, and what refilled."""
    limiters = await two_gateways(make_limiter, make_authority)
    limit, used = 100_000, 0
    who = tenant(tokens_per_minute=limit)
    began_s = time.monotonic()
    for i in range(10):
        found = await burst(limiters, 20, tenant=who, prompt_bytes=400, max_output=100 + 20 * i)
        for j, item in enumerate(found):
            usage = Usage(90 + j, 0, 80 + 25 * i)
            used += usage.prompt_tokens + usage.completion_tokens
            item.settle(usage)
    assert used > 40_000
    await limiters[0].close()  # Gives back what it holds.
    await asyncio.sleep(0.5)
    (probe,) = await burst(limiters[1:], 1, tenant=who)
    left = int(dict(probe.headers)[b"x-ratelimit-remaining-tokens"])
    refilled = (time.monotonic() - began_s) * limit / 60
    # A gateway believes that nobody else spends: what it says is what is left.
    assert limit - left == pytest.approx(used - refilled, abs=0.01 * used)
