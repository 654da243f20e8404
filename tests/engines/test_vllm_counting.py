"""How vLLM's outputs become usage and its steps figures; vLLM itself is not imported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aibrix_ray.engines.meta import ReplicaApp, decode_usage
from aibrix_ray.engines.vllm_client import UsageMeter
from aibrix_ray.engines.vllm_modules import StepFigures
from aibrix_ray.types import Usage


def output(
    *tokens: tuple[int, int], finished: bool = False, prompt: int = 5, cached: int | None = 0
) -> Any:
    """One output of a generate call; `tokens` are (choice, count)."""
    return SimpleNamespace(
        prompt_token_ids=[0] * prompt,
        num_cached_tokens=cached,
        outputs=[SimpleNamespace(index=i, token_ids=[0] * n) for i, n in tokens],
        finished=finished,
    )


async def usage_told(*calls: tuple[bool, list[Any]]) -> Usage | None:
    """Meter some generate calls within one HTTP request; return what its answer's header says."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for delta, outputs in calls:
            meter = UsageMeter(delta=delta)
            for each in outputs:
                meter.see(each)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    scope = {"type": "http", "path": "/p", "headers": [(b"x-aibrix-meta", b"1")]}
    await ReplicaApp(app, paths={"/p"})(scope, receive, send)
    headers = dict(sent[0]["headers"])
    return decode_usage(headers[b"x-aibrix-meta"]) if b"x-aibrix-meta" in headers else None


async def test_deltas_are_summed() -> None:
    outputs = [output((0, 1)), output((0, 2)), output((0, 1), finished=True)]
    assert await usage_told((True, outputs)) == Usage(5, 0, 4)


async def test_of_cumulative_outputs_the_last_counts() -> None:
    outputs = [output((0, 1)), output((0, 3)), output((0, 4), finished=True)]
    assert await usage_told((False, outputs)) == Usage(5, 0, 4)


async def test_a_single_final_output_counts_whole() -> None:
    assert await usage_told((False, [output((0, 7), (1, 6), finished=True)])) == Usage(5, 0, 13)


async def test_choices_that_end_apart_are_summed() -> None:
    outputs = [
        output((0, 1)),
        output((1, 2)),
        output((0, 1), (1, 1)),
        output((1, 3), finished=True),
    ]
    assert await usage_told((True, outputs)) == Usage(5, 0, 8)


async def test_prompts_are_counted_once_a_call_and_summed_over_calls() -> None:
    one = (True, [output((0, 1), prompt=5), output((0, 1), prompt=5, finished=True)])
    other = (True, [output((0, 4), prompt=9, cached=4, finished=True)])
    assert await usage_told(one, other) == Usage(14, 4, 6)


async def test_the_first_choice_says_what_was_cached() -> None:
    outputs = [output((0, 1), cached=2), output((1, 1), cached=5, finished=True)]
    assert await usage_told((True, outputs)) == Usage(5, 2, 2)


async def test_an_unfinished_call_tells_nothing() -> None:
    assert await usage_told((True, [output((0, 1))])) is None


async def test_unknown_cached_tokens_are_none() -> None:
    assert await usage_told((True, [output((0, 1), cached=None, finished=True)])) == Usage(5, 0, 1)


def step(running: int, waiting: int, usage: float, queries: int, hits: int) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=1,
        kv_cache_usage=usage,
        prefix_cache_stats=SimpleNamespace(queries=queries, hits=hits),
    )


def iteration(prompt: int, generated: int, finished: int, preempted: int = 0) -> Any:
    return SimpleNamespace(
        num_prompt_tokens=prompt,
        num_generation_tokens=generated,
        num_preempted_reqs=preempted,
        finished_requests=[None] * finished,
    )


def test_steps_are_summed_and_gauges_are_the_last() -> None:
    figures = StepFigures()
    figures.add(0, step(2, 3, 0.5, 10, 4), iteration(20, 2, 0))
    figures.add(0, step(1, 0, 0.25, 0, 0), iteration(0, 2, 1, preempted=1))
    figures.add(0, None, iteration(0, 1, 1))
    assert (figures.running, figures.waiting, figures.kv_usage) == (1, 1, 0.25)
    assert (figures.prompt_tokens, figures.generation_tokens, figures.finished) == (20, 5, 2)
    assert (figures.prefix_queries, figures.prefix_hits, figures.preemptions) == (10, 4, 1)


def test_cores_of_a_data_parallel_engine_are_added_up() -> None:
    figures = StepFigures()
    figures.add(0, step(2, 3, 0.5, 0, 0), None)
    figures.add(1, step(4, 0, 0.1, 0, 0), None)
    assert (figures.running, figures.waiting) == (6, 5)
    assert figures.kv_usage == pytest.approx(0.3)
    assert StepFigures().kv_usage == 0.0
