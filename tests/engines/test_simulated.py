"""The engine: its timeline, its batches, its figures, its end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from aibrix_ray.engine_model import accelerator_profile
from aibrix_ray.engines.simulated import SimulatedEngine
from aibrix_ray.engines.simulated_generation import Generation, GenerationRequest, Sampling
from aibrix_ray.engines.simulated_tokens import encode
from aibrix_ray.errors import ConfigError, Draining, ServerError
from tests.engines.test_simulated_serving import Gate, make_engine, serving, until


def make_request(prompt: str = "hello there", tokens: int = 8, seed: str = "") -> GenerationRequest:
    sampling = Sampling(ignore_eos=True)
    return GenerationRequest([(encode(prompt), tokens)], (seed,), sampling, whole=True)


async def finish(generation: Generation) -> str:
    async with asyncio.timeout(20):
        while not generation.done:
            await generation.changed()
    return generation.sequences[0].text


class TurnedClock:
    """Time that moves only when somebody sleeps; each sleep takes `late_s` longer than asked."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.late_s = late_s
        self.asked: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        if seconds > 0:
            self.now_s += seconds + self.late_s
        await asyncio.sleep(0)


async def test_two_engines_say_the_same() -> None:
    texts = []
    for batch in (1, 7):
        engine = make_engine(max_num_seqs=batch, speed=1000.0)
        await engine.start()
        generations = [engine.generate(make_request(f"say {n}", 40)) for n in range(5)]
        texts.append([await finish(generation) for generation in generations])
        await engine.stop()
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 5


async def test_the_timeline_is_that_of_the_batch_time_model() -> None:
    clock = TurnedClock()
    engine = make_engine(profile="A100", clock=clock, sleep=clock.sleep)
    await engine.start()
    prompt = encode("a b c d e f g")
    await finish(engine.generate(make_request("a b c d e f g", 4)))
    model = accelerator_profile("A100").coefficients
    expected = [model.step_s(len(prompt), attention=len(prompt) ** 2 / 2)]
    expected += [model.step_s(1, kv_tokens=len(prompt) + made) for made in range(3)]
    assert clock.asked == pytest.approx(expected)
    await engine.stop()


@pytest.mark.parametrize("late_s", [0.001, 0.02])
async def test_late_sleeps_do_not_add_up(late_s: float) -> None:
    # Steps of 0.05 ms and sleeps that overshoot by many of them: the engine catches up.
    clock = TurnedClock(late_s=late_s)
    engine = make_engine(clock=clock, sleep=clock.sleep)
    await engine.start()
    await finish(engine.generate(make_request(tokens=2000)))
    assert clock.now_s - 100.0 == pytest.approx(2000 * 0.00005, abs=late_s + 1e-9)
    await engine.stop()


async def test_speed_divides_every_step() -> None:
    taken = []
    for speed in (1.0, 10.0):
        clock = TurnedClock()
        engine = make_engine(profile="cpu", speed=speed, clock=clock, sleep=clock.sleep)
        await engine.start()
        await finish(engine.generate(make_request(tokens=30)))
        taken.append(clock.now_s - 100.0)
        await engine.stop()
    assert taken[0] == pytest.approx(10 * taken[1])
    assert taken[0] == pytest.approx(30 * 0.0037, rel=0.1)


async def test_an_idle_engine_neither_steps_nor_owes_time() -> None:
    clock = TurnedClock()
    engine = make_engine(profile="cpu", clock=clock, sleep=clock.sleep)
    await engine.start()
    await finish(engine.generate(make_request(tokens=5)))
    steps = len(clock.asked)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(clock.asked) == steps
    clock.now_s += 1000.0  # the idle time must not be caught up
    await finish(engine.generate(make_request("again", tokens=5)))
    assert len(clock.asked) == steps + 5
    assert all(seconds > 0 for seconds in clock.asked)
    await engine.stop()


async def test_requests_that_come_together_run_together() -> None:
    gate = Gate()
    engine = make_engine(sleep=gate, max_num_seqs=4)
    await engine.start()
    generations = [engine.generate(make_request(f"say {n}", 10)) for n in range(6)]
    gate.allow(1)
    await until(lambda: engine.stats().running == 4)
    assert engine.stats().waiting == 2
    assert engine.stats().max_running == 4
    # Four at a time: ten steps for the first four, ten for the last two.
    gate.allow(19)
    for generation in generations:
        await finish(generation)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    await engine.stop()


async def test_the_figures_are_those_of_the_scheduler() -> None:
    engine = make_engine(kv_blocks=300, block_size=16)
    await engine.start()
    first = engine.stats()
    assert (first.replica_id, first.group, first.model, first.epoch) == ("r1", "g", "tiny", "e1")
    assert (first.running, first.waiting, first.kv_usage, first.kv_blocks) == (0, 0, 0.0, 300)
    prompt = " the" * 64
    await finish(engine.generate(make_request(prompt, 10)))
    await finish(engine.generate(make_request(prompt, 10)))
    stats = engine.stats()
    assert stats.sequence > first.sequence
    assert stats.prompt_tokens_total == 128
    assert stats.generation_tokens_total == 20
    assert stats.requests_total == 2
    assert (stats.prefix_queries_total, stats.prefix_hits_total) == (128, 48)
    assert stats.preemptions_total == 0
    await engine.stop()


async def test_figures_that_do_not_exist_are_none() -> None:
    engine = make_engine(prefix_caching=False)
    assert engine.stats().prefix_queries_total is None
    assert engine.stats().prefix_hits_total is None


async def test_memory_pressure_is_seen_in_the_figures_and_changes_no_word() -> None:
    texts = []
    for kv_blocks in (40, 4000):
        engine = make_engine(kv_blocks=kv_blocks, block_size=16, max_model_len=600)
        await engine.start()
        generations = [engine.generate(make_request(f"say {n}", 200)) for n in range(6)]
        texts.append([await finish(generation) for generation in generations])
        assert (engine.stats().preemptions_total or 0) > 0 or kv_blocks == 4000
        await engine.stop()
    assert texts[0] == texts[1]


async def test_a_turn_of_a_conversation_finds_the_answer_before_it_in_the_cache() -> None:
    engine = make_engine()
    await engine.start()
    prompt = encode(" water" * 20)
    answer = engine.generate(make_request(" water" * 20, 50))
    await finish(answer)
    turn = [*prompt, *answer.sequences[0].token_ids, *encode(" and then?")]
    generation = engine.generate(GenerationRequest([(turn, 1)], whole=True))
    await finish(generation)
    assert generation.usage().cached_tokens == 64  # 69 tokens had been computed
    await engine.stop()


@pytest.mark.parametrize("salt", ["", "tenant"])
async def test_a_salt_keeps_prefixes_apart(salt: str) -> None:
    engine = make_engine()
    await engine.start()
    prompt = encode(" water" * 40)
    for cache_salt in ("", salt):
        generation = engine.generate(
            GenerationRequest([(prompt, 1)], cache_salt=cache_salt, whole=True)
        )
        await finish(generation)
    assert generation.usage().cached_tokens == (0 if salt else 32)
    await engine.stop()


async def test_a_sequence_that_ends_early_frees_its_seat_and_the_others_go_on() -> None:
    engine = make_engine()
    await engine.start()
    prompts = [(encode("one"), 30), (encode("two"), 30)]
    free = engine.generate(GenerationRequest(prompts, sampling=Sampling(ignore_eos=True)))
    await finish(free)
    early, late = (sequence.token_ids for sequence in free.sequences)
    assert early[3] not in late
    await engine.stop()
    gate = Gate()
    engine = make_engine(sleep=gate)
    await engine.start()
    sampling = Sampling(ignore_eos=True, stop_token_ids=frozenset([early[3]]))
    generation = engine.generate(GenerationRequest(prompts, sampling=sampling, whole=True))
    gate.allow(4)
    await until(lambda: engine.stats().running == 1)
    assert not generation.done
    gate.allow(26)
    await finish(generation)
    assert [sequence.token_ids for sequence in generation.sequences] == [early[:4], late]
    await engine.stop()


async def test_an_abort_frees_everything_without_a_step() -> None:
    gate = Gate()
    engine = make_engine(sleep=gate)
    await engine.start()
    generation = engine.generate(make_request(tokens=100))
    gate.allow(3)
    await until(lambda: len(generation.sequences[0].token_ids) == 3)
    generation.abort()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0)
    generation.abort()
    await engine.stop()


async def test_a_client_that_reads_slowly_finds_all_in_one_delta() -> None:
    engine = make_engine()
    await engine.start()
    generation = engine.generate(make_request(tokens=300))
    await until(lambda: generation.done)
    delta = generation.sequences[0].take()
    assert delta is not None
    assert len(delta.token_ids) == 300
    assert delta.finish_reason == "length"
    assert generation.sequences[0].take() is None
    await engine.stop()


async def test_start_takes_the_time_that_loading_takes() -> None:
    gate = Gate()
    engine = make_engine(sleep=gate, startup_s=30.0)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="does not run"):
        await engine.check_health()
    with pytest.raises(Draining):
        engine.generate(make_request())
    gate.allow(1)
    await starting
    await engine.check_health()
    await engine.stop()


async def test_a_stop_during_the_start_stays_stopped() -> None:
    gate = Gate()
    engine = make_engine(sleep=gate, startup_s=30.0)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    await engine.stop()
    gate.allow(1)
    await starting
    with pytest.raises(RuntimeError, match="does not run"):
        await engine.check_health()


async def test_stop_ends_what_is_under_way_and_may_be_called_twice() -> None:
    gate = Gate(steps=2)
    engine = make_engine(sleep=gate)
    await engine.start()
    generations = [engine.generate(make_request()) for _ in range(2)]
    await engine.stop()
    await engine.stop()
    for generation in generations:
        with pytest.raises(Draining, match="stopped"):
            await finish(generation)
    with pytest.raises(Draining):
        engine.generate(make_request())
    assert engine.stats().running == 0


async def broken(seconds: float) -> None:
    raise OSError("the accelerator fell off the bus")


async def test_a_dead_stepping_task_is_unhealthy_and_fails_its_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = make_engine(sleep=broken)
    await engine.start()
    await engine.check_health()
    with caplog.at_level(logging.CRITICAL), pytest.raises(ServerError, match="failed"):
        await finish(engine.generate(make_request()))
    with pytest.raises(RuntimeError, match="has died") as caught:
        await engine.check_health()
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ServerError, match="failed"):
        engine.generate(make_request())
    await engine.stop()


def test_an_unknown_profile_is_refused_where_it_stands() -> None:
    with pytest.raises(ConfigError) as caught:
        make_engine(profile="abacus")
    assert caught.value.path == "engine.profile"


@pytest.mark.parametrize("budget", [63, 1])
def test_a_budget_below_the_seats_is_refused(budget: int) -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens"):
        make_engine(max_num_seqs=64, max_num_batched_tokens=budget)


async def test_real_time_and_real_sleeps_work_together() -> None:
    async with serving(sleep=asyncio.sleep, profile="cpu", speed=200.0) as served:
        assert isinstance(served.engine, SimulatedEngine)
        answer = await served.complete(" water" * 10, max_tokens=20, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 20
