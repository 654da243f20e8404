from __future__ import annotations

from aibrix_ray.telemetry import TelemetryStore
from aibrix_ray.telemetry.overview import ModelRow, build_overview
from aibrix_ray.types import ReplicaStats
from tests.telemetry.figures import make_group, make_stats


def overview_of(store: TelemetryStore, now_s: float) -> tuple[ModelRow, ...]:
    return build_overview(
        store.changes_since(None, now_s), store.group_windows(now_s), store.replica_windows(now_s)
    )


def make_store(*batches: list[ReplicaStats]) -> TelemetryStore:
    """Merge one batch a second."""
    store = TelemetryStore("one")
    for second, batch in enumerate(batches):
        store.merge(batch, float(second))
    return store


def test_models_hold_groups_hold_replicas_in_order() -> None:
    store = make_store([make_stats("b"), make_stats("a"), make_stats("c", group="h", model="n")])
    store.register_group(make_group("g", min_replicas=1, max_replicas=4, accelerator="A10"), 0.0)
    store.register_group(make_group("idle", min_replicas=0), 0.0)
    one, two = overview_of(store, 0.0)
    assert [g.name for g in one.groups] == ["g", "idle"]
    assert [r.replica_id for r in one.groups[0].replicas] == ["a", "b"]
    assert (one.groups[0].ready, one.groups[0].max_replicas) == (2, 4)
    assert (one.groups[1].ready, one.groups[1].replicas) == (0, ())
    assert (two.name, two.groups[0].min_replicas) == ("n", None)


def test_a_draining_replica_is_shown_and_not_ready() -> None:
    store = make_store([make_stats("a", draining=True, running=2), make_stats("b", waiting=1)])
    (model,) = overview_of(store, 0.0)
    assert (model.ready, model.running, model.waiting) == (1, 2, 1)
    assert model.groups[0].draining == 1


def test_rates_and_ages_are_of_the_window() -> None:
    store = make_store(
        [make_stats(sequence=1, prompt_tokens_total=0, kv_usage=0.5)],
        [make_stats(sequence=2, prompt_tokens_total=70, kv_usage=0.5)],
    )
    (model,) = overview_of(store, 1.5)
    (replica,) = model.groups[0].replicas
    assert (replica.age_s, replica.epoch_age_s) == (0.5, 1.5)
    assert replica.prompt_tokens_per_s == model.groups[0].prompt_tokens_per_s == 70 / 1.5
    assert model.groups[0].kv_usage == 0.5
    assert replica.prefix_hit_rate is None
