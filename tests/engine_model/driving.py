"""Drives a scheduler in virtual time, for the tests of its laws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from aibrix_ray.engine_model import (
    BatchTimeModel,
    EngineRequest,
    Scheduler,
    SchedulerLimits,
    accelerator_profile,
)

A100 = accelerator_profile("A100").coefficients


def make_scheduler(
    *,
    kv_blocks: int = 1000,
    block_size: int = 16,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 512,
    prefix_caching: bool = True,
    model: BatchTimeModel = A100,
) -> Scheduler:
    limits = SchedulerLimits(
        kv_blocks=kv_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefix_caching=prefix_caching,
    )
    return Scheduler(model, limits)


def make_request(
    name: str, prompt_tokens: int, max_output_tokens: int, hashes: Iterable[int] = ()
) -> EngineRequest:
    return EngineRequest(
        name,
        prompt_tokens=prompt_tokens,
        max_output_tokens=max_output_tokens,
        block_hashes=list(hashes),
    )


@dataclass
class Log:
    """What happened when, in virtual seconds."""

    now_s: float = 0.0
    first_token_s: dict[str, float] = field(default_factory=dict)
    finished_s: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    steps: int = 0
    preempted: list[str] = field(default_factory=list)


def run(
    scheduler: Scheduler,
    arrivals: Iterable[tuple[float, EngineRequest]],
    *,
    max_rounds: int = 1,
    check: bool = False,
    max_steps: int = 100_000,
) -> Log:
    """Feed arrivals (in order of time) to one engine until everything is finished."""
    log = Log()
    queue = list(arrivals)[::-1]
    for _ in range(max_steps):
        while queue and queue[-1][0] <= log.now_s:
            scheduler.submit(queue.pop()[1])
        step = scheduler.plan(max_rounds=max_rounds)
        if step is None:
            if not queue:
                return log
            log.now_s = queue[-1][0]
            continue
        if queue:
            step.cut(queue[-1][0] - log.now_s)
        log.now_s += step.duration_s
        log.steps += 1
        events = scheduler.complete(step)
        log.tokens += events.tokens
        log.preempted += [request.request_id for request in events.preempted]
        log.first_token_s |= {r.request_id: log.now_s for r in events.first_tokens}
        log.finished_s |= {r.request_id: log.now_s for r in events.finished}
        if check:
            scheduler.check_integrity()
    raise AssertionError(f"not finished after {max_steps} steps: {scheduler.waiting} wait")
