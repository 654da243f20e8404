"""One model: its replicas, who of them is left out, and who waits for them."""

from __future__ import annotations

from collections.abc import Iterable

from aibrix_ray.admission import AdmissionQueue, PriorityWithAging
from aibrix_ray.outliers import Outliers, Silence
from aibrix_ray.pipeline.settings import ModelSettings
from aibrix_ray.routing import RoutingPolicy
from aibrix_ray.types import ReplicaView

#: A report older than this says nothing about a load any more; replicas report every second.
STALE_S = 5.0


class ModelState:
    """One model as the pipeline sees it: its policy, its replicas, and who waits for them.

    Attributes:
        members: the replicas that membership and state call ready.
        ready: those of them that requests are routed to.
        spare: the others, which are left out because they fail or are stuck.
        queue: requests that wait.
        outliers: who fails.
    """

    __slots__ = (
        "_silence",
        "_silent",
        "members",
        "name",
        "outliers",
        "policy",
        "queue",
        "ready",
        "settings",
        "spare",
    )

    def __init__(
        self, name: str, policy: RoutingPolicy, settings: ModelSettings | None = None
    ) -> None:
        self.name = name
        self.policy = policy
        self.settings = settings or ModelSettings()
        self.members: list[ReplicaView] = []
        self.ready: list[ReplicaView] = []
        self.spare: list[ReplicaView] = []
        self.queue = AdmissionQueue(
            PriorityWithAging(aging_s=self.settings.aging_s), capacity=self.settings.max_waiting
        )
        self.outliers = Outliers(self.settings.outliers)
        self._silence = Silence()
        self._silent: list[ReplicaView] = []

    @property
    def held(self) -> int:
        """How many requests wait because there is no replica, or none that they have not tried."""
        return self.queue.aside if self.ready else len(self.queue)

    @property
    def left_out(self) -> int:
        """How many members are not routed to because they fail or are stuck."""
        return len(self.members) - len(self.ready)

    def configure(self, policy: RoutingPolicy, settings: ModelSettings) -> None:
        """Take another policy and other settings; who waits keeps waiting."""
        if settings.aging_s != self.settings.aging_s:
            self.queue.use(PriorityWithAging(aging_s=settings.aging_s))
        self.policy, self.settings = policy, settings
        self.queue.capacity = settings.max_waiting
        self.outliers.settings = settings.outliers

    def set_members(self, members: list[ReplicaView], known: Iterable[ReplicaView]) -> None:
        """Replace the replicas that may be routed to; who waits for others has its turn again.

        Args:
            members: those that are ready.
            known: all there are; of one that is back soon it is remembered how it fared.
        """
        self.members = members
        self.outliers.keep(known)
        self._silent = [replica for replica in self._silent if replica in members]
        self.sort()
        self.queue.changed()

    def judge(self, now_s: float) -> bool:
        """Look at what only time brings: old reports, silence, the end of an ejection.

        Returns whether requests that are under way may have to leave their replica.
        """
        for replica in self.members:
            if replica.load_base and now_s - replica.stats_at_s > STALE_S:
                replica.load_base = 0  # an old report must not call a replica full for ever
        settings = self.settings.outliers
        self._silent = (
            self._silence.find(self.members, settings.silent_s, now_s)
            if settings.silent_s is not None
            else []
        )
        self.outliers.tick(now_s)
        self.sort()
        return bool(self._silent) or settings.latency_factor is not None

    def places(self) -> int:
        """Return how many more requests the replicas may take."""
        return sum(max(0, r.max_outstanding - r.load) for r in self.ready) + len(self.trials())

    def trials(self) -> list[ReplicaView]:
        """Return silent replicas with nothing of ours under way; one request each may be tried.

        Only where there is nowhere else to go: the silence may be that of their reports alone.
        """
        return [r for r in self._silent if r in self.spare and r.in_flight == 0]

    def is_stuck(self, replica: ReplicaView, now_s: float) -> bool:
        """Return whether a replica does not even report any more, while its siblings work."""
        silent_s = self.settings.outliers.silent_s
        return (
            silent_s is not None
            and replica in self._silent
            and now_s - replica.stats_at_s > silent_s
        )

    def sort(self) -> None:
        """Decide anew who is routed to; a change is a turn for those who stood aside."""
        before, members = self.ready, self.members
        left_out = [r for r in members if self.outliers.is_out(r) or r in self._silent]
        fit = [r for r in members if r not in left_out]
        self.ready, self.spare = (fit, left_out) if fit else (members, [])
        if self.ready != before:
            self.queue.changed()
