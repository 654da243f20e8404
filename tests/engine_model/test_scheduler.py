"""The laws of the scheduler, driven in virtual time."""

from __future__ import annotations

import random

import pytest

from aibrix_ray.engine_model import BatchTimeModel, EngineRequest, Phase, SchedulerLimits
from aibrix_ray.errors import BadRequest, ConfigError
from tests.engine_model.driving import A100, Log, make_request, make_scheduler, run


def ids(requests: list[EngineRequest]) -> list[str]:
    return [request.request_id for request in requests]


def test_an_idle_scheduler_plans_nothing() -> None:
    assert make_scheduler().plan() is None


def test_a_prompt_makes_the_first_token_and_each_step_one_more() -> None:
    scheduler = make_scheduler()
    log = run(scheduler, [(0.0, make_request("a", 100, 5))], check=True)
    assert (log.steps, log.tokens) == (5, 5)
    assert log.first_token_s["a"] < log.finished_s["a"]
    assert scheduler.totals.generation_tokens == 5
    assert scheduler.totals.prompt_tokens == 100


def test_the_first_token_takes_the_prefill_by_the_time_model() -> None:
    log = run(make_scheduler(), [(0.0, make_request("a", 300, 1))])
    assert log.first_token_s["a"] == pytest.approx(
        A100.step_s(300, attention=300 * 150, sequences=1)
    )


def test_a_long_prompt_is_computed_in_chunks() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=512)
    scheduler.submit(make_request("a", 1200, 1))
    sizes = []
    while (step := scheduler.plan()) is not None:
        sizes += [tokens for _, tokens in step.chunks]
        scheduler.complete(step)
    assert sizes == [512, 512, 176]


def test_decodes_come_before_prefill_in_the_budget() -> None:
    scheduler = make_scheduler(max_num_seqs=8, max_num_batched_tokens=8)
    for name in "abc":
        scheduler.submit(make_request(name, 2, 50))
    scheduler.complete(scheduler.plan() or pytest.fail("idle"))
    scheduler.submit(make_request("long", 100, 1))
    step = scheduler.plan()
    assert step is not None
    assert step.decodes == 3
    assert [(r.request_id, tokens) for r, tokens in step.chunks] == [("long", 5)]


def test_sequences_that_arrive_during_a_step_join_the_next() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 10, 5))
    step = scheduler.plan()
    assert step is not None
    scheduler.submit(make_request("b", 10, 5))
    assert ids(scheduler.complete(step).first_tokens) == ["a"]
    step = scheduler.plan()
    assert step is not None
    assert step.decodes == 1
    assert ids(scheduler.complete(step).first_tokens) == ["b"]


def test_no_more_sequences_run_than_there_are_seats() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.submit(make_request(name, 10, 3))
    scheduler.complete(scheduler.plan() or pytest.fail("idle"))
    assert (scheduler.running, scheduler.waiting) == (2, 1)
    log = run(scheduler, [])
    assert set(log.finished_s) == {"a", "b", "c"}


def test_a_sequence_that_does_not_fit_holds_back_those_behind_it() -> None:
    scheduler = make_scheduler(kv_blocks=10)
    scheduler.submit(make_request("a", 90, 20))
    scheduler.submit(make_request("big", 90, 2))
    scheduler.submit(make_request("small", 1, 2))
    step = scheduler.plan()
    assert step is not None
    assert ids([request for request, _ in step.chunks]) == ["a"]
    assert scheduler.waiting == 2


def test_first_tokens_come_in_the_order_of_arrival() -> None:
    rng = random.Random(3)
    arrivals = [
        (number * 0.004, make_request(str(number), rng.randint(1, 900), rng.randint(1, 60)))
        for number in range(200)
    ]
    scheduler = make_scheduler(kv_blocks=400, max_num_seqs=16)
    log = run(scheduler, arrivals)
    assert log.preempted  # the law holds under preemption too
    times = [log.first_token_s[str(number)] for number in range(200)]
    assert times == sorted(times)


def test_the_newest_sequence_is_preempted_and_computed_anew() -> None:
    # Each prompt fills 4 of 9 blocks, and each output needs 2 more.
    scheduler = make_scheduler(kv_blocks=9)
    old, new = make_request("old", 64, 30), make_request("new", 64, 30)
    log = run(scheduler, [(0.0, old), (0.0, new)], check=True)
    assert set(log.preempted) == {"new"}
    assert (old.preemptions, new.preemptions) == (0, len(log.preempted))
    assert log.tokens == 60
    assert log.finished_s["old"] < log.finished_s["new"]
    assert scheduler.totals.preemptions == len(log.preempted)


def test_no_sequence_starves_after_preemption() -> None:
    # A sequence may be preempted again and again, but who came later never overtakes it: all the
    # work that stands before its end is that of the sequences that came earlier, and of the seats.
    rng = random.Random(5)
    arrivals = [
        (number * 0.01, make_request(str(number), rng.randint(1, 150), rng.randint(1, 150)))
        for number in range(150)
    ]
    scheduler = make_scheduler(kv_blocks=40, max_num_seqs=8)
    log = run(scheduler, arrivals, check=True)
    assert len(log.finished_s) == 150
    assert len(log.preempted) > 20
    for number, (_, request) in enumerate(arrivals):
        earlier_s = max((log.finished_s[str(i)] for i in range(number)), default=0.0)
        alone_s = log.finished_s[str(number)] - max(earlier_s, arrivals[number][0])
        # Once it is the oldest it is never preempted, so it takes its own time from there on.
        assert alone_s <= 0.05 * (request.max_output_tokens + 1)


def test_two_sequences_with_one_beginning_share_its_blocks() -> None:
    scheduler = make_scheduler()
    first = make_request("a", 64, 5, hashes=[1, 2, 3, 4])
    second = make_request("b", 64, 5, hashes=[1, 2, 3, 9])
    run(scheduler, [(0.0, first), (1.0, second)], check=True)
    assert (first.cached_tokens, second.cached_tokens) == (0, 48)
    assert scheduler.totals.prefix_queries == 128
    assert scheduler.totals.prefix_hits == 48


def test_a_beginning_is_shared_within_one_step() -> None:
    scheduler = make_scheduler()
    requests = [make_request(name, 65, 2, hashes=[1, 2, 3, 4]) for name in "ab"]
    run(scheduler, [(0.0, request) for request in requests], check=True)
    assert [request.cached_tokens for request in requests] == [0, 64]


@pytest.mark.parametrize(("prompt_tokens", "cached"), [(63, 48), (64, 48), (65, 64)])
def test_the_last_prompt_token_is_always_computed(prompt_tokens: int, cached: int) -> None:
    scheduler = make_scheduler()
    hashes = [1, 2, 3, 4][: prompt_tokens // 16]
    run(scheduler, [(0.0, make_request("a", 65, 1, hashes=[1, 2, 3, 4]))])
    again = make_request("b", prompt_tokens, 1, hashes=hashes)
    run(scheduler, [(0.0, again)], check=True)
    assert again.cached_tokens == cached


@pytest.mark.parametrize(("made", "cached"), [(32, 32), (33, 48), (34, 48)])
def test_blocks_that_the_output_filled_are_found_by_the_next_turn(made: int, cached: int) -> None:
    scheduler = make_scheduler()
    # The last token that was made is not computed: 16 + 32 tokens fill two blocks, not three.
    run(scheduler, [(0.0, make_request("a", 16, made, hashes=[1, 2, 3]))], check=True)
    turn = make_request("b", 60, 1, hashes=[1, 2, 3])
    run(scheduler, [(0.0, turn)], check=True)
    assert turn.cached_tokens == cached


def test_without_prefix_caching_nothing_is_shared() -> None:
    scheduler = make_scheduler(prefix_caching=False)
    for name in "ab":
        request = make_request(name, 64, 5, hashes=[1, 2, 3, 4])
        run(scheduler, [(0.0, request)], check=True)
        assert request.cached_tokens == 0
    assert scheduler.cache.cached == 0
    assert scheduler.totals.prefix_queries == 0


def test_cached_blocks_make_room_for_new_sequences() -> None:
    scheduler = make_scheduler(kv_blocks=4)
    run(scheduler, [(0.0, make_request("a", 60, 1, hashes=[1, 2, 3]))])
    assert scheduler.cache.cached == 3
    log = run(scheduler, [(0.0, make_request("b", 60, 1, hashes=[7, 8, 9]))], check=True)
    assert set(log.finished_s) == {"b"}
    assert scheduler.cache.evictions == 3


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.PREFILL, Phase.DECODE])
def test_an_abort_frees_everything_at_once(phase: Phase) -> None:
    scheduler = make_scheduler(max_num_seqs=1, max_num_batched_tokens=64)
    request = make_request("gone", 100, 40)
    if phase is Phase.WAITING:
        scheduler.submit(make_request("other", 1, 40))
    scheduler.submit(request)
    while request.phase is not phase:
        scheduler.complete(scheduler.plan() or pytest.fail("idle"))
    assert scheduler.abort("gone")
    scheduler.check_integrity()
    assert request.phase is Phase.ENDED
    log = run(scheduler, [], check=True)
    assert "gone" not in log.finished_s
    assert scheduler.cache.usage == 0.0


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_an_abort_in_the_middle_of_a_step_makes_no_token(steps_before: int) -> None:
    scheduler = make_scheduler(max_num_batched_tokens=64)
    scheduler.submit(make_request("gone", 100, 40))
    for _ in range(steps_before):
        scheduler.complete(scheduler.plan() or pytest.fail("idle"))
    step = scheduler.plan()
    assert step is not None
    assert scheduler.abort("gone")
    events = scheduler.complete(step)
    assert (events.tokens, events.finished, events.first_tokens) == (0, [], [])
    scheduler.check_integrity()
    assert scheduler.plan() is None


def test_an_abort_of_what_is_unknown_or_over_says_so() -> None:
    scheduler = make_scheduler()
    run(scheduler, [(0.0, make_request("a", 5, 1))])
    assert not scheduler.abort("a")
    assert not scheduler.abort("never")


def test_an_abort_at_the_head_lets_the_next_one_in() -> None:
    scheduler = make_scheduler(kv_blocks=10)
    for name, prompt_tokens in (("a", 90), ("big", 120), ("small", 1)):
        scheduler.submit(make_request(name, prompt_tokens, 2))
    scheduler.complete(scheduler.plan() or pytest.fail("idle"))
    assert scheduler.abort("big")
    step = scheduler.plan()
    assert step is not None
    assert ids([request for request, _ in step.chunks]) == ["small"]


def test_a_sequence_larger_than_the_cache_is_refused_with_the_numbers() -> None:
    scheduler = make_scheduler(kv_blocks=4)
    with pytest.raises(
        BadRequest, match=r"60 prompt tokens and up to 5 output tokens .* 64 tokens"
    ):
        scheduler.submit(make_request("a", 60, 5))
    scheduler.submit(make_request("b", 60, 4))


def test_a_request_without_output_ends_with_its_prompt() -> None:
    scheduler = make_scheduler()
    log = run(scheduler, [(0.0, make_request("embed", 700, 0))], check=True)
    assert (log.tokens, log.first_token_s) == (0, {})
    assert "embed" in log.finished_s


def test_a_budget_below_the_seats_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        SchedulerLimits(kv_blocks=10, max_num_seqs=64, max_num_batched_tokens=63)
    SchedulerLimits(kv_blocks=10, max_num_seqs=64, max_num_batched_tokens=64)


def workload(seed: int, requests: int = 120) -> list[tuple[float, EngineRequest]]:
    rng = random.Random(seed)
    now_s, arrivals = 0.0, []
    for number in range(requests):
        now_s += rng.expovariate(20.0)
        blocks = rng.randint(0, 8)
        hashes = [1000 * rng.randint(0, 2) + index for index in range(blocks)]
        prompt_tokens = blocks * 16 + rng.randint(1, 15)
        output = rng.randint(0, 120)
        arrivals.append((now_s, make_request(str(number), prompt_tokens, output, hashes)))
    return arrivals


def outcome(log: Log) -> tuple[object, ...]:
    return log.first_token_s, log.finished_s, log.tokens, log.preempted, log.now_s


@pytest.mark.parametrize("kv_blocks", [30, 2000])
def test_the_same_input_gives_the_same_output(kv_blocks: int) -> None:
    logs = [run(make_scheduler(kv_blocks=kv_blocks), workload(1)) for _ in range(2)]
    assert outcome(logs[0]) == outcome(logs[1])
    other = run(make_scheduler(kv_blocks=kv_blocks), workload(2))
    assert outcome(other) != outcome(logs[0])


@pytest.mark.parametrize("kv_blocks", [30, 60, 2000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_rounds_in_one_step_change_nothing_but_the_number_of_steps(
    kv_blocks: int, seed: int
) -> None:
    single = run(make_scheduler(kv_blocks=kv_blocks), workload(seed))
    many = run(make_scheduler(kv_blocks=kv_blocks), workload(seed), max_rounds=10_000, check=True)
    assert many.steps < single.steps
    assert many.tokens == single.tokens
    assert many.preempted == single.preempted
    assert list(many.finished_s) == list(single.finished_s)
    assert many.finished_s == pytest.approx(single.finished_s)
    assert many.first_token_s == pytest.approx(single.first_token_s)


def test_a_cut_ends_a_step_with_the_round_under_way() -> None:
    scheduler = make_scheduler(model=BatchTimeModel(0, 0, 1, 0, 0, 0, c0_ms=1.0))
    scheduler.submit(make_request("a", 1, 101))
    scheduler.complete(scheduler.plan() or pytest.fail("idle"))
    for elapsed_s, rounds in ((0.0105, 11), (0.0, 1), (0.0007, 1), (0.0013, 2), (9.0, 85)):
        step = scheduler.plan(max_rounds=1000)
        assert step is not None
        step.cut(elapsed_s)
        assert step.rounds == rounds
        assert step.duration_s == pytest.approx(rounds / 1000)
        assert scheduler.complete(step).tokens == rounds
    assert scheduler.plan() is None


def test_waiting_time_is_that_of_a_queue_with_constant_service() -> None:
    # M/D/1: one sequence at a time, prefill only, so TTFT = D + R * D^2 / (2 * (1 - R * D)).
    rng = random.Random(11)
    scheduler = make_scheduler(max_num_seqs=1, max_num_batched_tokens=512)
    service_s = A100.step_s(400, attention=400 * 200, sequences=1)
    rate = 0.7 / service_s
    now_s, arrivals = 0.0, []
    for number in range(20_000):
        now_s += rng.expovariate(rate)
        arrivals.append((now_s, make_request(str(number), 400, 1)))
    log = run(scheduler, arrivals)
    ttft_s = sum(log.first_token_s[str(i)] - at for i, (at, _) in enumerate(arrivals)) / 20_000
    expected_s = service_s + rate * service_s**2 / (2 * (1 - rate * service_s))
    assert ttft_s == pytest.approx(expected_s, rel=0.05)
