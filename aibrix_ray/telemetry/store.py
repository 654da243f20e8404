"""What Telemetry knows, as a pure object: each replica's newest stats, the groups, the changes.

Knows no Ray, no clock and no I/O: the time comes in. Lives within one *incarnation* of the
Telemetry actor; its version counts from zero there, so a `Version` of another one says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aibrix_ray.telemetry.windows import WINDOW_S, LoadWindow, LoadWindows
from aibrix_ray.types import GroupInfo, ReplicaStats

#: A replica that was not heard for this long is forgotten.
REPLICA_TTL_S = 10.0
#: A group is not taken for gone this soon after its registration: the list of applications that
#: says so may be older than the group.
GROUP_GRACE_S = 30.0
#: How long a deregistered group cannot come back by hearsay (reporters, gateways).
DEREGISTERED_S = 60.0
#: Removed replicas remembered for deltas; whoever is further behind gets the whole state.
MAX_REMOVED = 10_000
#: Past epochs remembered a replica, to recognise their late reports.
_MAX_RETIRED = 8
#: The label by which a group names its Serve application where that is not the group's own name.
APPLICATION_LABEL = "application"


@dataclass(frozen=True, slots=True)
class Version:
    """A point in the life of one incarnation of the store."""

    incarnation: str
    number: int


@dataclass(frozen=True, slots=True)
class Update:
    """What changed since a version, or (`full`) everything.

    `ages_s` stands beside `replicas`: how long before this answer each was heard. `removed` are the
    ids of forgotten replicas, also of such as came and went between two updates. `groups` are all
    groups, or `None` where no group changed. What a full update does not list does not exist.
    """

    version: Version
    full: bool
    replicas: tuple[ReplicaStats, ...] = ()
    ages_s: tuple[float, ...] = ()
    removed: tuple[str, ...] = ()
    groups: tuple[GroupInfo, ...] | None = None


class TelemetryStore:
    """Merges reports, forgets what is unheard, and tells what changed since when."""

    def __init__(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._number = 0
        # Ordered by last change, so that a delta costs what changed and not what there is.
        self._replicas: dict[str, _Replica] = {}
        self._removed: dict[str, int] = {}
        # Deltas are complete for versions from here on.
        self._horizon = 0
        self._groups: dict[str, _Group] = {}
        self._groups_changed = 0
        self._deregistered: dict[str, float] = {}
        self._windows = LoadWindows()

    @property
    def version(self) -> Version:
        """The current version; moves with every change."""
        return Version(self._incarnation, self._number)

    @property
    def replica_count(self) -> int:
        """Replicas heard within their time to live."""
        return len(self._replicas)

    @property
    def group_count(self) -> int:
        """Groups known, with replicas or without."""
        return len(self._groups)

    def merge(self, batch: Iterable[ReplicaStats], now_s: float) -> int:
        """Take a batch of reports and return how many were news or signs of life.

        An older sequence of the same epoch and any report of a past epoch are ignored. A repeated
        sequence changes nothing but the replica's age, which counts as a change too: whoever
        follows must learn that the replica is still there.
        """
        number = self._number + 1
        taken = 0
        for stats in batch:
            replica = self._replicas.get(stats.replica_id)
            if replica is None:
                replica = _Replica(stats)
                self._removed.pop(stats.replica_id, None)
            elif replica.accept(stats):
                del self._replicas[stats.replica_id]  # goes to the end of the order
            else:
                continue
            replica.heard_s = now_s
            replica.changed = number
            self._replicas[stats.replica_id] = replica
            self._windows.observe(stats, now_s)
            taken += 1
        if taken:
            self._number = number
        return taken

    def register_group(self, info: GroupInfo, now_s: float) -> None:
        """Take a group's own registration; replaces what was known of it."""
        self._deregistered.pop(info.name, None)
        known = self._groups.get(info.name)
        self._groups[info.name] = _Group(info, now_s)
        if known is None or known.info != info:
            self._mark_groups()

    def restore_groups(self, infos: Iterable[GroupInfo], now_s: float) -> None:
        """Take groups by hearsay, from those who knew them before this incarnation began.

        A registration that is as new wins, and a group that was deregistered stays away.
        """
        for info in infos:
            known = self._groups.get(info.name)
            if info.name in self._deregistered:
                continue
            if known is None or known.info.created_s < info.created_s:
                self._groups[info.name] = _Group(info, now_s)
                self._mark_groups()

    def deregister_group(self, name: str, now_s: float) -> None:
        """Forget a group; one that is not known is no error."""
        self._deregistered[name] = now_s
        if self._groups.pop(name, None) is not None:
            self._mark_groups()

    def applications_alive(self, names: Iterable[str], now_s: float) -> tuple[str, ...]:
        """Forget the groups whose application is not among `names`; return which.

        A group that was registered within `GROUP_GRACE_S` is spared.
        """
        alive = set(names)
        gone = tuple(
            name
            for name, group in self._groups.items()
            if group.info.labels.get(APPLICATION_LABEL, name) not in alive
            and now_s - group.registered_s >= GROUP_GRACE_S
        )
        for name in gone:
            self.deregister_group(name, now_s)
        return gone

    def expire(self, now_s: float) -> tuple[str, ...]:
        """Forget the replicas unheard for `REPLICA_TTL_S`; return their ids."""
        gone = tuple(r for r, e in self._replicas.items() if now_s - e.heard_s > REPLICA_TTL_S)
        if gone:
            self._number += 1
        for replica_id in gone:
            del self._replicas[replica_id]
            self._removed[replica_id] = self._number
        while len(self._removed) > MAX_REMOVED:
            oldest = next(iter(self._removed))
            self._horizon = self._removed.pop(oldest)
        self._windows.prune(now_s)
        for name in [n for n, t in self._deregistered.items() if now_s - t > DEREGISTERED_S]:
            del self._deregistered[name]
        return gone

    def changes_since(self, version: Version | None, now_s: float) -> Update:
        """Return what changed after `version`; everything if that cannot be told from it."""
        if version is None or not self.can_follow(version):
            return self._whole(now_s)
        changed: list[_Replica] = []
        for replica in reversed(self._replicas.values()):
            if replica.changed <= version.number:
                break
            changed.append(replica)
        removed = []
        for replica_id, number in reversed(self._removed.items()):
            if number <= version.number:
                break
            removed.append(replica_id)
        return Update(
            version=self.version,
            full=False,
            replicas=tuple(r.stats for r in changed),
            ages_s=tuple(now_s - r.heard_s for r in changed),
            removed=tuple(removed),
            groups=self._infos() if self._groups_changed > version.number else None,
        )

    def can_follow(self, version: Version) -> bool:
        """Return whether a delta from `version` to now can be told."""
        return (
            version.incarnation == self._incarnation
            and self._horizon <= version.number <= self._number
        )

    def group_windows(self, now_s: float, *, window_s: float = WINDOW_S) -> list[LoadWindow]:
        """Return the load window of each group."""
        return self._windows.groups(self._infos(), now_s, window_s=window_s)

    def replica_windows(self, now_s: float, *, window_s: float = WINDOW_S) -> list[LoadWindow]:
        """Return the load window of each replica."""
        return self._windows.replicas(now_s, window_s=window_s)

    def check_integrity(self) -> None:
        """Assert what holds between calls."""
        marks = [r.changed for r in self._replicas.values()]
        assert marks == sorted(marks), "replicas are not in the order of their changes"
        assert not marks or marks[-1] <= self._number, "a replica changed in the future"
        numbers = list(self._removed.values())
        assert numbers == sorted(numbers), "removals are not in their order"
        assert not self._removed.keys() & self._replicas.keys(), "both here and removed"
        assert not self._deregistered.keys() & self._groups.keys(), "both known and deregistered"

    def _whole(self, now_s: float) -> Update:
        replicas = self._replicas.values()
        return Update(
            version=self.version,
            full=True,
            replicas=tuple(r.stats for r in replicas),
            ages_s=tuple(now_s - r.heard_s for r in replicas),
            groups=self._infos(),
        )

    def _infos(self) -> tuple[GroupInfo, ...]:
        return tuple(g.info for g in self._groups.values())

    def _mark_groups(self) -> None:
        self._number += 1
        self._groups_changed = self._number


class _Replica:
    """One replica's newest stats, when it was heard, and the version that last changed it."""

    __slots__ = ("changed", "heard_s", "retired", "stats")

    def __init__(self, stats: ReplicaStats) -> None:
        self.stats = stats
        self.heard_s = 0.0
        self.changed = 0
        self.retired: tuple[str, ...] = ()

    def accept(self, stats: ReplicaStats) -> bool:
        """Take the stats if they are not outdated; return whether they were taken."""
        known = self.stats
        if stats.epoch != known.epoch:
            if stats.epoch in self.retired:
                return False
            self.retired = (*self.retired[1 - _MAX_RETIRED :], known.epoch)
        elif stats.sequence < known.sequence:
            return False
        self.stats = stats
        return True


@dataclass(frozen=True, slots=True)
class _Group:
    info: GroupInfo
    registered_s: float
