"""A gateway's limiter: what it admits, what it tells clients, what it does alone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from aibrix_ray.errors import ApiError, ExceedsLimit, RateLimited
from aibrix_ray.limiter import Admitted, GatewayLimiter, LocalAuthority, has_limits
from aibrix_ray.limits import excess
from aibrix_ray.types import Usage
from tests.limiter.asking import ask, burst, tenant, user_config
from tests.limiter.authorities import SharedAuthority
from tests.telemetry.following import until


async def settled(limiter: GatewayLimiter) -> None:
    """Wait until everything is told."""

    async def quiet() -> bool:
        return not limiter._book.accounts.has_marks

    await until(quiet)


async def refused(limiter: GatewayLimiter, **request: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await ask(limiter, **request)
    return caught.value


# Simultaneous bursts


@pytest.mark.parametrize("gateways", [1, 3])
async def test_a_simultaneous_burst_gets_what_fits(make_limiter: Any, gateways: int) -> None:
    """U11: 30 requests released at once on a TPM worth 2 of them."""
    authority = SharedAuthority(time.monotonic)
    limiters = [await make_limiter(authority) for _ in range(gateways)]
    who = tenant(tokens_per_minute=220)
    admitted = await burst(limiters, 30, tenant=who, prompt_bytes=400, max_output=0)
    assert len(admitted) == 2


async def test_a_fresh_user_is_limited_from_the_first_request(make_limiter: Any) -> None:
    """U11's neighbour: nobody has met this user yet."""
    authority = SharedAuthority(time.monotonic)
    limiters = [await make_limiter(authority) for _ in range(3)]
    for limiter in limiters:
        limiter.apply(user_config(user_limits={"requests_per_minute": 2}))
    assert len(await burst(limiters, 30, user="bob")) == 2
    assert len(await burst(limiters, 30, user="eve")) == 2
    assert len(await burst(limiters, 30, user="bob", tenant=tenant("acme"))) == 2, "another bob"


async def test_what_failed_is_released_and_what_was_guessed_too_high_is_refunded(
    make_limiter: Any,
) -> None:
    """U11's neighbour: after the answers the next ones fit."""
    limiter = await make_limiter(LocalAuthority())
    who = tenant(tokens_per_minute=220)
    first, second = await burst([limiter], 30, tenant=who, prompt_bytes=400)
    first.settle(None)
    second.settle(Usage(completion_tokens=12))
    await settled(limiter)
    assert len(await burst([limiter], 30, tenant=who, prompt_bytes=400)) == 2


# Charging


async def test_streams_are_charged_like_plain_answers(make_limiter: Any) -> None:
    """U12: the limiter does not know what a stream is; TPM 200, answers of 60 tokens."""
    limiter = await make_limiter(LocalAuthority())
    limiter.apply(user_config(models={"m": {"limits": {"tokens_per_minute": 200}}}))
    for _ in range(3):
        (await ask(limiter, max_output=10)).settle(Usage(5, 0, 55))
        await settled(limiter)
    error = await refused(limiter, max_output=60, prompt_bytes=20)
    assert isinstance(error, RateLimited)
    assert error.type == "tokens"


async def test_a_stream_that_is_cut_is_charged_for_what_it_produced(make_limiter: Any) -> None:
    """U12's neighbour: reserved for 100, cut after 7."""
    limiter = await make_limiter(LocalAuthority())
    who = tenant(tokens_per_minute=1000)
    admitted = await ask(limiter, tenant=who, prompt_bytes=400, max_output=100)
    admitted.settle(Usage(prompt_tokens=90, completion_tokens=7))
    assert dict(admitted.headers)[b"x-ratelimit-remaining-tokens"] == b"903"


async def test_without_a_word_of_the_engine_what_was_reserved_stays_charged(
    make_limiter: Any,
) -> None:
    """U12's neighbour: no usage at the end is not "free"."""
    limiter = await make_limiter(LocalAuthority())
    who = tenant(tokens_per_minute=1000)
    admitted = await ask(limiter, tenant=who, prompt_bytes=400, max_output=100)
    admitted.keep()
    assert dict(admitted.headers)[b"x-ratelimit-remaining-tokens"] == b"800"


async def test_the_prompt_counts(make_limiter: Any) -> None:
    """U13: TPM 500, prompts of 400 tokens with answers of one."""
    limiter = await make_limiter(LocalAuthority())
    who = tenant(tokens_per_minute=500)
    (await ask(limiter, tenant=who, prompt_bytes=1600, max_output=1)).settle(Usage(400, 0, 1))
    for _ in range(2):
        await settled(limiter)
        error = await refused(limiter, tenant=who, prompt_bytes=1600, max_output=1)
        assert error.status == 429
        assert "500 tokens per minute for `tenant:acme`" in error.message
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= 60


async def test_cached_prompt_tokens_count_once(make_limiter: Any) -> None:
    """U13's neighbour: `cached_tokens` are part of the prompt."""
    limiter = await make_limiter(LocalAuthority())
    admitted = await ask(limiter, tenant=tenant(tokens_per_minute=1000))
    admitted.settle(Usage(prompt_tokens=300, cached_tokens=299, completion_tokens=1))
    assert dict(admitted.headers)[b"x-ratelimit-remaining-tokens"] == b"699"


async def test_a_prompt_that_is_larger_than_the_limit_is_told_that_it_can_never_pass(
    make_limiter: Any,
) -> None:
    """U13's neighbour: no Retry-After, for it would be a lie."""
    limiter = await make_limiter(LocalAuthority())
    error = await refused(limiter, tenant=tenant(tokens_per_minute=100), prompt_bytes=4000)
    assert isinstance(error, ExceedsLimit)
    assert error.retry_after_s is None
    assert "about 1000 tokens" in error.message


async def test_an_answers_guess_alone_makes_no_request_too_large(make_limiter: Any) -> None:
    limiter = await make_limiter(LocalAuthority())
    admitted = await ask(limiter, tenant=tenant(tokens_per_minute=100), max_output=None)
    admitted.settle(Usage(1, 0, 1))


# Requests at once


async def test_the_cap_is_one_for_all_gateways(make_limiter: Any) -> None:
    """U14: 60 slow requests at once, over 3 gateways, on a cap of 4."""
    authority = SharedAuthority(time.monotonic)
    limiters = [await make_limiter(authority) for _ in range(3)]
    who = tenant(max_concurrent=4)
    admitted = await burst(limiters, 60, tenant=who)
    assert len(admitted) == 4
    error = await refused(limiters[0], tenant=who)
    assert (error.status, error.retry_after_s) == (429, 1.0)
    assert "4 requests at once for `tenant:acme`" in error.message
    for item in admitted:
        item.settle(Usage())
    for limiter in limiters:
        await settled(limiter)
    await asyncio.sleep(0.06)  # That all are taken is believed for 50 ms.
    assert len(await burst(limiters, 60, tenant=who)) == 4


async def test_two_keys_of_a_tenant_share_its_cap_and_two_tenants_do_not(
    make_limiter: Any,
) -> None:
    """U14's neighbours."""
    limiter = await make_limiter(LocalAuthority())
    assert len(await burst([limiter], 5, tenant=tenant("a", max_concurrent=1))) == 1
    assert len(await burst([limiter], 5, tenant=tenant("a", max_concurrent=1))) == 0
    assert len(await burst([limiter], 5, tenant=tenant("b", max_concurrent=1))) == 1


@pytest.mark.parametrize("usage", [None, Usage(), Usage(5, 0, 5)])
async def test_every_way_out_frees_the_slot(make_limiter: Any, usage: Usage | None) -> None:
    """U15: a cap of 1; refused, failed and good requests, and then a good one at once."""
    limiter = await make_limiter(LocalAuthority())
    who = tenant(max_concurrent=1)
    for _ in range(10):
        admitted = await ask(limiter, tenant=who)
        admitted.settle(usage)
        admitted.settle(usage)
        await settled(limiter)
    await ask(limiter, tenant=who)


async def test_a_client_that_leaves_while_it_waits_takes_nothing_with_it(
    make_limiter: Any,
) -> None:
    """U15's neighbour: cancelled before and after the authority decided."""
    authority = SharedAuthority(time.monotonic)
    limiter = await make_limiter(authority)
    who = tenant(max_concurrent=1)
    authority.answers.clear()
    waiting = asyncio.create_task(ask(limiter, tenant=who))
    await asyncio.sleep(0)
    waiting.cancel()
    authority.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await settled(limiter)
    waiting = asyncio.create_task(ask(limiter, tenant=who))
    await asyncio.sleep(0)
    (claim,) = limiter._waiting
    limiter._book.exchange.lose(time.monotonic())  # Decides: what it holds is enough, or is not.
    limiter._decide(claim)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not limiter._waiting

    async def admitted() -> bool:
        try:
            (await ask(limiter, tenant=who)).settle(None)
        except RateLimited:
            return False
        return True

    await until(admitted)


async def test_an_answer_that_comes_as_the_client_leaves_reaches_the_others(
    make_limiter: Any,
) -> None:
    """U15's neighbour: the task was cancelled, and did not run yet, when the answer came."""
    limiter = await make_limiter(LocalAuthority())
    who = tenant(max_concurrent=2)
    leaving, staying = (asyncio.create_task(ask(limiter, tenant=who)) for _ in range(2))
    await asyncio.sleep(0)
    assert len(limiter._waiting) == 2
    leaving.cancel()
    limiter._book.exchange.live_until_s = float("inf")
    for account in limiter._book.accounts:
        account.slots.lease = 2
    limiter._decide_all()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert isinstance(await staying, Admitted)
    assert limiter._book.accounts.by_key["tenant:acme"].slots.in_use == 1


async def test_a_request_that_another_limit_refuses_holds_no_slot(make_limiter: Any) -> None:
    """U15's neighbour."""
    limiter = await make_limiter(LocalAuthority())
    limiter.apply(user_config(models={"small": {"limits": {"requests_per_minute": 1}}}))
    who = tenant(max_concurrent=1)
    (await ask(limiter, "small", tenant=who)).settle(Usage())
    await settled(limiter)
    for _ in range(5):
        await refused(limiter, model="small", tenant=who)
    await settled(limiter)
    await ask(limiter, "large", tenant=who)


# What clients are told


async def test_an_answer_carries_what_is_left_of_the_tightest_limit(make_limiter: Any) -> None:
    limiter = await make_limiter(LocalAuthority())
    limiter.apply(user_config(models={"m": {"limits": {"requests_per_minute": 50}}}))
    who = tenant(requests_per_minute=100, tokens_per_minute=6000)
    admitted = await ask(limiter, tenant=who, prompt_bytes=400, max_output=0)
    headers = dict(admitted.headers)
    assert headers == {
        b"x-ratelimit-limit-requests": b"50",
        b"x-ratelimit-remaining-requests": b"49",
        b"x-ratelimit-reset-requests": headers[b"x-ratelimit-reset-requests"],
        b"x-ratelimit-limit-tokens": b"6000",
        b"x-ratelimit-remaining-tokens": b"5900",
        b"x-ratelimit-reset-tokens": b"1s",
    }
    assert headers[b"x-ratelimit-reset-requests"] in (b"1s", b"2s")


async def test_a_refusal_says_what_when_and_how_much(make_limiter: Any) -> None:
    limiter = await make_limiter(LocalAuthority())
    who = tenant(requests_per_minute=1)
    await ask(limiter, tenant=who)
    error = await refused(limiter, tenant=who)
    assert isinstance(error, RateLimited)
    assert (error.status, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert error.message.startswith(
        "Rate limit reached: 1 requests per minute for `tenant:acme`; 0 left, 1 needed. "
    )
    assert error.retry_after_s == pytest.approx(60, abs=5)
    headers = dict(error.headers)
    assert headers[b"x-ratelimit-limit-requests"] == b"1"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert 55_000 <= int(headers[b"retry-after-ms"]) <= 60_000


async def test_without_limits_nothing_is_counted_and_nothing_said(make_limiter: Any) -> None:
    authority = SharedAuthority(time.monotonic)
    limiter = await make_limiter(authority)
    admitted = await ask(limiter, tenant=tenant(), user="bob")
    assert admitted.headers == []
    admitted.settle(Usage(1, 0, 1))
    admitted.settle(None)
    assert not limiter._book.accounts.has_marks


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"models": {"m": {}}}, False),
        ({"models": {"m": {"limits": {"max_concurrent": 1}}}}, True),
        ({"user_limits": {"tokens_per_minute": 1}}, True),
    ],
)
def test_a_configuration_has_limits_or_has_none(settings: Any, expected: bool) -> None:
    assert has_limits(user_config(**settings)) is expected


async def test_limits_change_at_run_time(make_limiter: Any) -> None:
    limiter = await make_limiter(LocalAuthority())
    for limit, expected in ((10, 10), (30, 20), (5, 0)):
        limiter.apply(user_config(models={"m": {"limits": {"requests_per_minute": limit}}}))
        admitted = len(await burst([limiter], 100))
        assert expected <= admitted <= expected + excess(limit, 1)
        await settled(limiter)
    limiter.apply(user_config())
    assert len(await burst([limiter], 100)) == 100


async def test_a_users_name_of_any_length_is_a_key_of_bounded_length(make_limiter: Any) -> None:
    limiter = await make_limiter(LocalAuthority())
    limiter.apply(user_config(user_limits={"requests_per_minute": 1}))
    await ask(limiter, user="x" * 1_000_000)
    await refused(limiter, user="x" * 1_000_000)
    await ask(limiter, user="x" * 999_999)
    assert all(len(key) < 300 for key in limiter._book.accounts.by_key)


# The hot path


async def test_a_request_that_is_covered_waits_for_no_authority(make_limiter: Any) -> None:
    authority = SharedAuthority(time.monotonic)
    limiter = await make_limiter(authority)
    who = tenant(requests_per_minute=8000, tokens_per_minute=800_000, max_concurrent=800)
    for item in await burst([limiter], 10, tenant=who):
        item.settle(Usage())
    await settled(limiter)
    authority.answers.clear()
    for _ in range(90):
        admitted = limiter.reserve(
            "m", tenant=who, user=None, prompt_bytes=4, max_output=1, now_s=time.monotonic()
        )
        assert admitted is not None
    authority.answers.set()


# Without the authority


async def test_a_limiter_that_never_met_its_authority_has_its_share(make_limiter: Any) -> None:
    authority = SharedAuthority(time.monotonic)
    authority.reachable = False
    limiter = await make_limiter(authority, gateways=4)
    assert not limiter.reachable
    assert len(await burst([limiter], 200, tenant=tenant(requests_per_minute=100))) == 25
    assert await burst([limiter], 5, tenant=tenant("b", max_concurrent=100)) == []


async def test_away_and_back(make_limiter: Any) -> None:
    """Requests that wait when it goes are decided at once; afterwards all is known again."""
    authority = SharedAuthority(time.monotonic)
    limiters = [await make_limiter(authority) for _ in range(2)]
    who = tenant(requests_per_minute=100)
    assert len(await burst(limiters, 40, tenant=who)) == 40
    authority.reachable = False
    await until(lambda: _are(limiters, reachable=False))
    assert len(await burst(limiters, 200, tenant=who)) <= 60 + excess(100, 2)
    authority.reachable = True
    await until(lambda: _are(limiters, reachable=True))
    for limiter in limiters:
        await settled(limiter)
    assert len(await burst(limiters, 200, tenant=who)) <= excess(100, 2)


async def _are(limiters: list[GatewayLimiter], *, reachable: bool) -> bool:
    return all(limiter.reachable is reachable for limiter in limiters)


async def test_an_authority_that_began_anew_is_told_everything(make_limiter: Any) -> None:
    authority = SharedAuthority(time.monotonic)
    limiters = [await make_limiter(authority) for _ in range(2)]
    both = tenant(requests_per_minute=100, max_concurrent=60)
    held = await burst(limiters, 200, tenant=both)
    assert len(held) == 60
    for item in held[:30]:
        item.settle(Usage())
    for limiter in limiters:
        await settled(limiter)
    authority.restart()

    async def told() -> bool:
        leased = authority.ledger.leased("tenant:acme|concurrent")
        return authority.ledger.sessions == 2 and leased >= 30

    await until(told)
    more = await burst(limiters, 200, tenant=both)
    assert len(more) <= 30, "requests that began before still count"
    assert len(held) + len(more) <= 100 + excess(100, 2)


async def test_an_authority_that_hangs_keeps_no_request_waiting_for_ever(
    make_limiter: Any,
) -> None:
    """Given up after a second; then each gateway has its share."""
    authority = SharedAuthority(time.monotonic)
    limiter = await make_limiter(authority)
    authority.answers.clear()
    assert len(await burst([limiter], 200, tenant=tenant(requests_per_minute=100))) == 100
    assert not limiter.reachable
    authority.answers.set()


async def test_a_request_that_the_authority_cannot_decide_is_refused_as_unsure(
    make_limiter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aibrix_ray.limiter.gateway.WAIT_S", 0.2)
    authority = SharedAuthority(time.monotonic)
    authority.restart()  # It does not know yet who holds which slots.
    limiter = await make_limiter(authority)
    error = await refused(limiter, tenant=tenant(max_concurrent=1))
    assert error.status == 429
    assert "Could not check the limit of 1 requests at once" in error.message
    assert authority.syncs < 50, "it was asked again and again without a pause"


async def test_what_is_held_is_given_back_at_the_end(make_limiter: Any) -> None:
    authority = SharedAuthority(time.monotonic)
    limiter = await make_limiter(authority)
    who = tenant(requests_per_minute=8000, max_concurrent=80)
    for item in await burst([limiter], 40, tenant=who):
        item.settle(Usage())
    await limiter.close()
    assert authority.ledger.sessions == 0
    assert authority.ledger.leased("tenant:acme|concurrent") == 0
    level = authority.ledger.level("tenant:acme|requests", time.monotonic())
    assert level is not None
    assert level >= 7960
