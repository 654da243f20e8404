"""Puts what Telemetry knows in the order in which people read it: model, group, replica. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aibrix_ray.telemetry.store import Update
from aibrix_ray.telemetry.windows import LoadWindow
from aibrix_ray.types import GroupInfo, ReplicaStats


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One replica.

    `age_s` is since its last report, `epoch_age_s` since this run of its engine was first heard.
    Rates are over the window; a figure that the engine does not know is `None`.
    """

    replica_id: str
    epoch: str
    draining: bool
    running: int
    waiting: int
    kv_usage: float | None
    prompt_tokens_per_s: float | None
    generation_tokens_per_s: float | None
    prefix_hit_rate: float | None
    age_s: float
    epoch_age_s: float | None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group: sums over its replicas, `kv_usage` their mean over the window.

    `ready` counts the replicas that report and do not drain. The bounds are `None` where replicas
    report for a group that nobody has registered.
    """

    name: str
    engine: str
    accelerator: str
    ready: int
    draining: int
    min_replicas: int | None
    max_replicas: int | None
    running: int
    waiting: int
    kv_usage: float | None
    prompt_tokens_per_s: float | None
    generation_tokens_per_s: float | None
    prefix_hit_rate: float | None
    replicas: tuple[ReplicaRow, ...]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model and the groups that serve it."""

    name: str
    ready: int
    running: int
    waiting: int
    groups: tuple[GroupRow, ...]


def build_overview(
    whole: Update, group_windows: Iterable[LoadWindow], replica_windows: Iterable[LoadWindow]
) -> tuple[ModelRow, ...]:
    """Return all models by name, from a full update and the windows of about the same moment."""
    assert whole.full, "an overview is made of the whole state"
    by_replica = {w.name: w for w in replica_windows}
    by_group = {w.name: w for w in group_windows}
    infos = {g.name: g for g in whole.groups or ()}
    models = {g.name: g.model for g in infos.values()}
    members: dict[str, list[ReplicaRow]] = {name: [] for name in infos}
    for stats, age_s in zip(whole.replicas, whole.ages_s, strict=True):
        models.setdefault(stats.group, stats.model)
        row = _replica_row(stats, age_s, by_replica.get(stats.replica_id))
        members.setdefault(stats.group, []).append(row)
    groups: dict[str, list[GroupRow]] = {}
    for name, rows in sorted(members.items()):
        row_of_group = _group_row(name, infos.get(name), by_group.get(name), rows)
        groups.setdefault(models[name], []).append(row_of_group)
    return tuple(_model_row(name, rows_of_model) for name, rows_of_model in sorted(groups.items()))


def _replica_row(stats: ReplicaStats, age_s: float, window: LoadWindow | None) -> ReplicaRow:
    return ReplicaRow(
        replica_id=stats.replica_id,
        epoch=stats.epoch,
        draining=stats.draining,
        running=stats.running,
        waiting=stats.waiting,
        kv_usage=stats.kv_usage,
        prompt_tokens_per_s=window.prompt_tokens_per_s if window else None,
        generation_tokens_per_s=window.generation_tokens_per_s if window else None,
        prefix_hit_rate=window.prefix_hit_rate if window else None,
        age_s=age_s,
        epoch_age_s=window.epoch_age_s if window else None,
    )


def _group_row(
    name: str, info: GroupInfo | None, window: LoadWindow | None, rows: list[ReplicaRow]
) -> GroupRow:
    return GroupRow(
        name=name,
        engine=info.engine if info else "",
        accelerator=info.accelerator if info else "",
        ready=sum(not r.draining for r in rows),
        draining=sum(r.draining for r in rows),
        min_replicas=info.min_replicas if info else None,
        max_replicas=info.max_replicas if info else None,
        running=sum(r.running for r in rows),
        waiting=sum(r.waiting for r in rows),
        kv_usage=window.kv_usage_mean if window else None,
        prompt_tokens_per_s=window.prompt_tokens_per_s if window else None,
        generation_tokens_per_s=window.generation_tokens_per_s if window else None,
        prefix_hit_rate=window.prefix_hit_rate if window else None,
        replicas=tuple(sorted(rows, key=lambda r: r.replica_id)),
    )


def _model_row(name: str, groups: list[GroupRow]) -> ModelRow:
    return ModelRow(
        name=name,
        ready=sum(g.ready for g in groups),
        running=sum(g.running for g in groups),
        waiting=sum(g.waiting for g in groups),
        groups=tuple(groups),
    )
