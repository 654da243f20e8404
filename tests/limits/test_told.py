"""What clients are told, what requests are guessed to use, and what the authority remembers."""

from __future__ import annotations

import pytest

from aibrix_ray.errors import ExceedsLimit, RateLimited
from aibrix_ray.limits import Estimator, Kind, Ledger, Limits, RateAsk, Refusal, Sync
from aibrix_ray.limits.estimate import FIRST_OUTPUT
from aibrix_ray.limits.headers import duration, rate_headers
from aibrix_ray.types import Usage
from tests.limits.world import World

# Headers and errors


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0ms"),
        (0.0001, b"1ms"),
        (0.017, b"17ms"),
        (0.9999, b"1s"),
        (1.01, b"2s"),
        (59.1, b"1m0s"),
        (360, b"6m0s"),
    ],
)
def test_a_span_is_written_as_openai_does_and_rounded_up(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


def test_the_headers_tell_limit_rest_and_when_all_is_back() -> None:
    assert rate_headers(Kind.TOKENS, 600, 590) == (
        (b"x-ratelimit-limit-tokens", b"600"),
        (b"x-ratelimit-remaining-tokens", b"590"),
        (b"x-ratelimit-reset-tokens", b"1s"),
    )


def refusal(**parts: object) -> Refusal:
    whole = {
        "kind": Kind.TOKENS,
        "subject": "tenant:acme",
        "limit": 500,
        "requested": 401,
        "remaining": 99,
        "retry_after_s": 36.24,
    }
    return Refusal(**whole | parts)  # type: ignore[arg-type]


def test_a_refusal_names_the_limit_and_when_to_come_back() -> None:
    """U13: the reason names tokens a minute."""
    error = refusal().error()
    assert isinstance(error, RateLimited)
    assert error.message == (
        "Rate limit reached: 500 tokens per minute for `tenant:acme`; 99 left, 401 needed. "
        "Please try again in 37s."
    )
    assert (error.type, error.retry_after_s) == ("tokens", 36.24)
    assert (b"retry-after-ms", b"36240") in error.headers


def test_a_cap_is_told_as_a_limit_of_requests() -> None:
    error = refusal(kind=Kind.CONCURRENT, limit=4, requested=1, remaining=0).error()
    assert error.type == "requests"


def test_what_can_never_pass_is_no_matter_of_waiting() -> None:
    error = refusal(never=True, requested=900).error()
    assert isinstance(error, ExceedsLimit)
    assert error.retry_after_s is None


def test_a_long_subject_is_cut() -> None:
    assert len(refusal(subject="user:" + "x" * 10_000).error().message) < 400


def test_the_refusing_limit_is_the_one_that_lasts_longest() -> None:
    world = World(1)
    book = world.books[0]
    subjects = [
        ("tenant:t", Limits(requests_per_minute=6)),
        ("model:m", Limits(requests_per_minute=1)),
    ]
    world.admit(book, subjects)
    found = world.refuse(book, subjects)
    assert (found.subject, found.limit) == ("model:m", 1)
    assert found.retry_after_s == pytest.approx(60)


# Guesses


def test_an_answer_is_guessed_by_those_before_it_and_never_beyond_what_is_allowed() -> None:
    estimator = Estimator()
    assert estimator.output_tokens(None) == FIRST_OUTPUT
    assert [estimator.output_tokens(n) for n in (0, 10, 10_000)] == [0, 10, FIRST_OUTPUT]
    for _ in range(500):
        estimator.observe(600, Usage(prompt_tokens=200, completion_tokens=40))
    assert estimator.output_tokens(None) == pytest.approx(40, abs=1)
    assert estimator.prompt_tokens(600) == pytest.approx(200, abs=1)


def test_a_model_that_counts_no_prompt_tokens_teaches_nothing_about_prompts() -> None:
    estimator = Estimator()
    before = estimator.prompt_tokens(1000)
    estimator.observe(1000, Usage(completion_tokens=5))
    estimator.observe(0, Usage(prompt_tokens=50, completion_tokens=5))
    assert estimator.prompt_tokens(1000) == before


def test_one_odd_request_does_not_turn_the_mean_over() -> None:
    estimator = Estimator()
    estimator.observe(4, Usage(prompt_tokens=1, completion_tokens=100_000))
    for _ in range(1000):
        estimator.observe(4, Usage(prompt_tokens=1, completion_tokens=10))
    assert estimator.output_tokens(None) == pytest.approx(10, abs=1)


# The authority's memory


def test_full_buckets_are_forgotten_and_the_number_is_bounded() -> None:
    ledger = Ledger("1", 0.0, max_buckets=100)
    ledger.sync(Sync("a", 0, joins=True), 0.0)
    for i in range(500):
        ledger.sync(Sync("a", 0, rates=[RateAsk(f"user:{i}", 60, charge=30)]), i / 1000)
    assert ledger.buckets <= 101
    for i in range(100):
        ledger.sync(Sync("a", 0, rates=[RateAsk("user:x", 60)]), 100.0 + i / 1000)
    assert ledger.buckets <= 2


def test_what_gateways_tell_an_authority_that_began_anew_comes_to_one_truth() -> None:
    """One gave back 50 and the other knows only of the time before: 50 are there."""
    ledger = Ledger("2", 0.0, settled=True)
    for name in "ab":
        ledger.sync(Sync(name, 2, joins=True), 0.0)
    ledger.sync(Sync("a", 2, rates=[RateAsk("k", 100, level=0.0, give_back=50)]), 0.0)
    grants = ledger.sync(Sync("b", 2, rates=[RateAsk("k", 100, level=0.0)]), 0.0)
    assert grants.rates[0].level == 50


def test_a_gateway_that_knows_of_nothing_takes_nothing_from_what_the_others_told() -> None:
    """What the first was granted in ignorance is a debt once the second has told."""
    ledger = Ledger("2", 0.0, settled=True)
    for name in "ab":
        ledger.sync(Sync(name, 2, joins=True), 0.0)
    ledger.sync(Sync("a", 2, rates=[RateAsk("k", 100, need=30)]), 0.0)
    grants = ledger.sync(Sync("b", 2, rates=[RateAsk("k", 100, level=10.0, need=5, least=5)]), 0.0)
    assert grants.rates[0].granted == 0
    assert grants.rates[0].level == -20
