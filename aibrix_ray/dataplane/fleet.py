"""The fleet as one gateway sees it: which models, which replicas, where they listen, how loaded.

Membership comes from outside as whole lists a group (Serve's replica set, or a static list); state
comes as reports (Telemetry). The two are independent: a replica without a report is served by our
own in-flight counts, a report without a replica is ignored. Knows neither Serve nor Ray.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aibrix_ray.dataplane.channel import Address, Endpoint
from aibrix_ray.pipeline import ModelSettings, ModelState, Pipeline
from aibrix_ray.routing import RoutingPolicy
from aibrix_ray.types import GroupInfo, ReplicaStats, ReplicaView

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """One ready replica as membership reports it. `epoch` is new at each start of its engine."""

    replica_id: str
    address: Address
    node_id: str = ""
    epoch: str = ""


class Replica(ReplicaView):
    """A replica's view together with the channel to it."""

    __slots__ = ("down", "endpoint", "epoch", "group_limit", "header")

    def __init__(self, member: Member, group: GroupInfo) -> None:
        super().__init__(
            replica_id=member.replica_id,
            group=group.name,
            model=group.model,
            node_id=member.node_id,
            accelerator=group.accelerator,
            cost_per_hour=group.cost_per_hour,
            max_outstanding=group.max_outstanding,
        )
        self.endpoint = Endpoint(member.address)
        self.epoch = member.epoch
        self.header = (b"target-replica", member.replica_id.encode())
        self.down = False
        self.group_limit = group.max_outstanding

    def limit(self, running_factor: float | None) -> None:
        """Set how many requests it may hold: what its group says, and what its engine can run."""
        self.max_outstanding = self.group_limit
        running = self.stats.max_running if self.stats is not None else None
        if running_factor is not None and running is not None:
            most = max(1, math.ceil(running_factor * running))
            self.max_outstanding = min(self.group_limit, most)


class Fleet:
    """Applies membership and state to the pipeline's models. All calls on the gateway's loop.

    `on_change` is called after whatever may have made a place for requests that wait.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        make_policy: Callable[[str], RoutingPolicy],
        settings_of: Callable[[str], ModelSettings],
    ) -> None:
        self._pipeline = pipeline
        self._make_policy = make_policy
        self._settings_of = settings_of
        self._groups: dict[str, GroupInfo] = {}
        self._replicas: dict[str, dict[str, Replica]] = {}
        self.on_change: Callable[[], None] = lambda: None

    @property
    def groups(self) -> Mapping[str, GroupInfo]:
        """The groups that are known, by name."""
        return self._groups

    def replicas(self, group: str) -> list[Replica]:
        """The members of a group, also those that drain or refuse connections."""
        return list(self._replicas.get(group, {}).values())

    def set_groups(self, groups: Iterable[GroupInfo]) -> None:
        """Replace the known groups; a model stays known as long as one group serves it."""
        wanted = {group.name: group for group in groups}
        for name in self._groups.keys() - wanted.keys():
            self.set_members(name, ())
            self._replicas.pop(name, None)
        self._groups = wanted
        for name in wanted:
            self._replicas.setdefault(name, {})
        models = {group.model for group in wanted.values()}
        known = self._pipeline.models
        for model in models - known.keys():
            known[model] = ModelState(model, self._make_policy(model), self._settings_of(model))
        for model in known.keys() - models:
            del known[model]
        self._refresh()

    def reconfigure(self) -> None:
        """Take new settings and policies for every model; requests under way keep the old."""
        for name, model in self._pipeline.models.items():
            model.configure(self._make_policy(name), self._settings_of(name))
        for members in self._replicas.values():
            for replica in members.values():
                self._limit(replica)
        self.on_change()

    def set_members(self, group: str, members: Iterable[Member]) -> None:
        """Replace the ready replicas of a group.

        A replica that stays keeps its connections and counts; with another epoch or address it is
        a new one that happens to have an old name.
        """
        info = self._groups.get(group)
        if info is None:
            return
        current = self._replicas.setdefault(group, {})
        wanted = {member.replica_id: member for member in members}
        for replica_id in list(current):
            member = wanted.get(replica_id)
            old = current[replica_id]
            if member is None or (member.address, member.epoch) != (
                old.endpoint.address,
                old.epoch,
            ):
                old.endpoint.close()
                del current[replica_id]
        for replica_id, member in wanted.items():
            known = current.get(replica_id)
            if known is None:
                current[replica_id] = Replica(member, info)
                logger.info("replica %s of %s joined at %s", replica_id, group, member.address)
            else:
                known.down = False  # confirmed again
        self._refresh()

    def apply_stats(self, reports: Iterable[ReplicaStats], now_s: float) -> None:
        """Take reports in; one of another epoch than the member's is late and is ignored."""
        changed = False
        for stats in reports:
            replica = self._replicas.get(stats.group, {}).get(stats.replica_id)
            if replica is None or (replica.epoch and stats.epoch != replica.epoch):
                continue
            if stats.has_moved(replica.stats):
                replica.progress_s = max(replica.progress_s, now_s)
            replica.stats = stats
            replica.stats_at_s = now_s
            replica.load_base = max(0, stats.running + stats.waiting - replica.in_flight)
            self._limit(replica)
            if replica.down or stats.draining != replica.draining:
                replica.draining = stats.draining
                replica.down = False  # it speaks, so it lives
                changed = True
        if changed:
            self._refresh()
        else:
            self.on_change()

    def judge(self, now_s: float) -> bool:
        """Find out who is stuck, whose ejection is over, which reports are too old.

        Returns whether requests that are under way may have to leave their replica.
        """
        unrest = False
        for model in self._pipeline.models.values():
            unrest |= model.judge(now_s)
        return unrest

    def mark_down(self, replica: Replica) -> None:
        """Stop routing to a replica that refused a connection, until it is heard of again."""
        if not replica.down:
            logger.warning("replica %s refuses connections; not routed to", replica.replica_id)
            replica.down = True
            self._refresh()

    def mark_draining(self, replica: Replica) -> None:
        """Stop routing to a replica that said that it drains."""
        if not replica.draining:
            replica.draining = True
            self._refresh()

    def close(self) -> None:
        """Close every channel."""
        for members in self._replicas.values():
            for replica in members.values():
                replica.endpoint.close()

    def _refresh(self) -> None:
        known: dict[str, list[Replica]] = {name: [] for name in self._pipeline.models}
        for members in self._replicas.values():
            for replica in members.values():
                if replica.model in known:
                    known[replica.model].append(replica)
        for name, model in self._pipeline.models.items():
            ready: list[ReplicaView] = [r for r in known[name] if not (r.down or r.draining)]
            model.set_members(ready, known[name])
        self.on_change()

    def _limit(self, replica: Replica) -> None:
        model = self._pipeline.models.get(replica.model)
        if model is not None:
            replica.limit(model.settings.running_factor)
