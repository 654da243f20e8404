"""U20: an engine that is stuck behind a process that answers."""

from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.engines.progress import ProgressWatch
from aibrix_ray.types import ReplicaStats


def stats(**figures: Any) -> ReplicaStats:
    fixed = {"running": 0, "waiting": 0}
    return ReplicaStats("r", "g", "m", "e", 1, **{**fixed, **figures})


@pytest.mark.parametrize("busy", [{"running": 1}, {"waiting": 2}])
def test_an_engine_that_makes_nothing_of_its_requests_is_unhealthy(busy: dict[str, int]) -> None:
    watch = ProgressWatch(60.0)
    for now_s in (0.0, 30.0, 60.0):
        watch.check(stats(**busy), now_s)
    with pytest.raises(RuntimeError, match="ended no request for 61 s"):
        watch.check(stats(**busy), 61.0)


@pytest.mark.parametrize(
    "total", ["prompt_tokens_total", "generation_tokens_total", "requests_total"]
)
def test_any_progress_begins_the_time_anew(total: str) -> None:
    watch = ProgressWatch(60.0)
    for count in range(10):
        watch.check(stats(running=1, **{total: count}), 50.0 * count)
    with pytest.raises(RuntimeError):
        watch.check(stats(running=1, **{total: 9}), 450.0 + 61.0)


def test_an_idle_engine_is_healthy_and_the_time_begins_with_its_work() -> None:
    watch = ProgressWatch(60.0)
    watch.check(stats(), 0.0)
    watch.check(stats(), 1000.0)
    watch.check(stats(running=1), 1060.0)
    with pytest.raises(RuntimeError):
        watch.check(stats(running=1), 1061.0)


def test_an_engine_that_recovers_is_healthy_again() -> None:
    watch = ProgressWatch(60.0)
    watch.check(stats(running=1), 0.0)
    with pytest.raises(RuntimeError):
        watch.check(stats(running=1), 100.0)
    watch.check(stats(running=1, generation_tokens_total=1), 101.0)
