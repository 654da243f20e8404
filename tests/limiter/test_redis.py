"""The script in a real Redis does what the ledger does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from aibrix_ray.config import GatewayArgs
from aibrix_ray.dataplane import standalone
from aibrix_ray.errors import ConfigError
from aibrix_ray.limiter import AuthorityUnreachable
from aibrix_ray.limiter.redis_authority import PREFIX, RedisAuthority
from aibrix_ray.limits import Grants, Ledger, RateAsk, SlotAsk, SlotGrant, Sync
from aibrix_ray.types import Usage
from tests.limiter.asking import burst, user_config
from tests.limiter.redis_server import RedisServer
from tests.telemetry.following import until

SESSIONS = st.sampled_from(["a/1", "b/1", "c/1"])
FEW = st.integers(0, 8)
RATES = st.builds(
    RateAsk,
    key=st.sampled_from(["tenant:x|requests", 'tenant:ü "|tokens']),
    limit=st.sampled_from([5, 20]),
    # Whole numbers: what refills in some milliseconds does not take one over the next.
    level=st.one_of(st.just(math.inf), st.integers(-5, 15)),
    charge=st.integers(0, 20),
    give_back=st.integers(0, 20),
    need=FEW,
    least=FEW,
    ahead=FEW,
)
SLOTS = st.builds(
    SlotAsk,
    key=st.sampled_from(["tenant:x|concurrent", "model:y|concurrent"]),
    cap=st.integers(1, 10),
    hold=st.integers(0, 3),
    need=FEW,
    ahead=FEW,
)
SYNCS = st.builds(
    Sync,
    session=SESSIONS,
    gateways=st.integers(0, 3),
    joins=st.booleans(),
    replaces=st.one_of(st.just(""), SESSIONS),
    leaves=st.sampled_from([False, False, False, True]),
    rates=st.lists(RATES, max_size=2, unique_by=lambda ask: ask.key),
    slots=st.lists(SLOTS, max_size=2, unique_by=lambda ask: ask.key),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(syncs=st.lists(SYNCS, min_size=1, max_size=12))
def test_redis_answers_as_the_ledger_does(redis_server: RedisServer, syncs: list[Sync]) -> None:
    redis_server.clear()

    async def answers() -> list[Grants]:
        # Silence is long here, so that a slow machine does not make a difference.
        authority = RedisAuthority(redis_server.url, reclaim_s=1000.0)
        try:
            return [await authority.sync(sync) for sync in syncs]
        finally:
            await authority.close()

    ledger = Ledger("x", 0.0)
    for i, (sync, found) in enumerate(zip(syncs, asyncio.run(answers()), strict=True)):
        expected = ledger.sync(sync, i / 1000)
        assert replace(found, incarnation="x", rates=[]) == replace(expected, rates=[])
        for one, other in zip(found.rates, expected.rates, strict=True):
            assert one.granted == other.granted
            assert one.level == pytest.approx(other.level, abs=0.5)


@pytest.fixture
async def make_authority(redis_url: str) -> AsyncIterator[Callable[..., RedisAuthority]]:
    made: list[RedisAuthority] = []

    def make(**settings: Any) -> RedisAuthority:
        made.append(RedisAuthority(redis_url, **settings))
        return made[-1]

    yield make
    for authority in made:
        await authority.close()


def rate(limit: int, **parts: Any) -> list[RateAsk]:
    return [RateAsk("tenant:t|requests", limit, **parts)]


def slots(cap: int, **parts: Any) -> list[SlotAsk]:
    return [SlotAsk("tenant:t|concurrent", cap, **parts)]


async def test_a_bucket_refills_by_the_time_of_redis(make_authority: Any) -> None:
    authority = make_authority()
    limit = 60_000
    first = await authority.sync(Sync("a", 0, joins=True, rates=rate(limit, need=limit)))
    assert (first.rates[0].granted, first.rates[0].level) == (limit, 0.0)
    await asyncio.sleep(0.1)
    second = await authority.sync(Sync("a", 0, rates=rate(limit)))
    assert second.rates[0].level >= 99, "a thousand come back in a second"


async def test_a_gateway_that_is_not_heard_loses_its_slots(make_authority: Any) -> None:
    authority = make_authority(reclaim_s=0.3)
    for name in "abab":
        await authority.sync(Sync(name, 2, joins=True))
    await authority.sync(Sync("a", 2))
    took = await authority.sync(Sync("b", 2, slots=slots(1, need=1)))
    assert took.slots == [SlotGrant(1, 0)]
    refused = await authority.sync(Sync("a", 2, slots=slots(1, need=1)))
    assert refused.slots == [SlotGrant(0, 0)]

    async def granted() -> bool:
        found = await authority.sync(Sync("a", 2, slots=slots(1, need=1)))
        return bool(found.slots[0].lease)

    await until(granted)
    assert not (await authority.sync(Sync("b", 2))).known


async def test_it_takes_nobody_for_dead_because_it_was_away_itself(
    make_authority: Any, redis_url: str
) -> None:
    authority = make_authority()
    await authority.sync(Sync("a", 1, joins=True))
    async with Redis.from_url(redis_url) as client:
        now_s = (await client.time())[0]
        await client.hset(f"{PREFIX}:meta", "heard_s", now_s - 60)
        await client.zadd(f"{PREFIX}:seen", {"a": now_s - 60})
    assert (await authority.sync(Sync("b", 0, joins=True))).gateways == 2
    assert (await authority.sync(Sync("a", 1))).known


async def test_a_redis_that_comes_back_empty_is_another_incarnation(
    redis_server: RedisServer, make_authority: Any
) -> None:
    authority = make_authority()
    first = await authority.sync(Sync("a", 0, joins=True))
    redis_server.stop()
    with pytest.raises(AuthorityUnreachable):
        await authority.sync(Sync("a", 0))
    redis_server.start()
    second = await authority.sync(Sync("a", 0))
    assert (first.known, second.known) == (True, False)
    assert first.incarnation != second.incarnation


async def test_nothing_is_left_of_gateways_and_buckets_that_are_gone(
    make_authority: Any, redis_url: str
) -> None:
    authority = make_authority()
    await authority.sync(
        Sync("a", 0, joins=True, rates=rate(6000, charge=1), slots=slots(9, hold=1))
    )
    await authority.sync(Sync("a", 0, leaves=True))

    async with Redis.from_url(redis_url) as client:

        async def only_meta_is_left() -> bool:
            return await client.keys("*") == [f"{PREFIX}:meta".encode()]

        await until(only_meta_is_left)


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://host:port/0"])
def test_a_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.limiter: .* expected redis://") as caught:
        RedisAuthority(url)
    assert url not in str(caught.value)


async def test_gateways_without_ray_share_the_limits_of_the_redis_that_they_are_told(
    redis_url: str,
) -> None:
    args = GatewayArgs.model_validate({"auth": {"limiter": redis_url}})
    limiters = [standalone.make_limiter(args) for _ in range(2)]
    for limiter in limiters:
        limiter.apply(user_config(models={"m": {"limits": {"requests_per_minute": 2}}}))
        await limiter.start()
    admitted = await burst(limiters, 6)
    assert len(admitted) == 2
    for each in admitted:
        each.settle(Usage())
    for limiter in limiters:
        await limiter.close()
