from __future__ import annotations

import time
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from aibrix_ray.telemetry import TelemetryStore, Update, Version
from aibrix_ray.telemetry.store import (
    DEREGISTERED_S,
    GROUP_GRACE_S,
    MAX_REMOVED,
    REPLICA_TTL_S,
)
from aibrix_ray.types import GroupInfo, ReplicaStats
from tests.telemetry.figures import make_fleet, make_group, make_stats


@dataclass
class Follower:
    """Applies updates as a gateway does."""

    version: Version | None = None
    replicas: dict[str, ReplicaStats] = field(default_factory=dict)
    groups: dict[str, GroupInfo] = field(default_factory=dict)

    def apply(self, update: Update) -> None:
        if update.full:
            self.replicas.clear()
        for replica_id in update.removed:
            self.replicas.pop(replica_id, None)
        self.replicas |= {s.replica_id: s for s in update.replicas}
        if update.groups is not None:
            self.groups = {g.name: g for g in update.groups}
        self.version = update.version

    def follow(self, store: TelemetryStore, now_s: float = 0.0) -> Update:
        update = store.changes_since(self.version, now_s)
        self.apply(update)
        return update


def make_store(*stats: ReplicaStats, now_s: float = 0.0) -> TelemetryStore:
    store = TelemetryStore("one")
    store.merge(stats, now_s)
    return store


def newest(store: TelemetryStore, replica_id: str = "r1") -> ReplicaStats:
    return {s.replica_id: s for s in store.changes_since(None, 0.0).replicas}[replica_id]


def test_the_newest_sequence_wins() -> None:
    store = make_store(make_stats(sequence=1), make_stats(sequence=3, running=3))
    assert store.merge([make_stats(sequence=2, running=2)], 0.0) == 0
    assert newest(store).running == 3


def test_a_late_report_is_no_sign_of_life() -> None:
    store = make_store(make_stats(sequence=2))
    store.merge([make_stats(sequence=1)], 9.0)
    assert store.expire(REPLICA_TTL_S + 0.1) == ("r1",)


def test_a_repeated_report_is_a_sign_of_life_that_followers_see() -> None:
    store = make_store(make_stats(sequence=2))
    before = store.version
    store.merge([make_stats(sequence=2)], 9.0)
    assert store.expire(REPLICA_TTL_S + 0.1) == ()
    update = store.changes_since(before, 9.5)
    assert [s.replica_id for s in update.replicas] == ["r1"]
    assert update.ages_s == (0.5,)


def test_a_new_epoch_replaces_although_its_sequence_begins_again() -> None:
    store = make_store(make_stats(sequence=900, epoch="a"))
    assert store.merge([make_stats(sequence=0, epoch="b")], 1.0) == 1
    assert (newest(store).epoch, newest(store).sequence) == ("b", 0)


def test_a_late_report_of_a_past_epoch_does_not_bring_it_back() -> None:
    store = make_store(make_stats(epoch="a"), make_stats(sequence=0, epoch="b"))
    assert store.merge([make_stats(sequence=99, epoch="a")], 1.0) == 0
    assert newest(store).epoch == "b"


def test_an_unheard_replica_is_forgotten_and_told_as_removed() -> None:
    store, follower = make_store(make_stats("r1"), make_stats("r2")), Follower()
    follower.follow(store)
    store.merge([make_stats("r2", 2)], 5.0)
    assert store.expire(REPLICA_TTL_S + 1) == ("r1",)
    assert follower.follow(store).removed == ("r1",)
    assert follower.replicas.keys() == {"r2"}


def test_a_replica_that_returns_is_not_told_as_removed() -> None:
    store, follower = make_store(make_stats()), Follower()
    follower.follow(store)
    store.expire(20.0)
    store.merge([make_stats(sequence=0)], 21.0)
    update = follower.follow(store)
    assert (update.removed, len(update.replicas)) == ((), 1)


def test_a_delta_holds_only_what_changed() -> None:
    store, follower = make_store(*make_fleet(100)), Follower()
    assert follower.follow(store).full
    changed = make_fleet(100, sequence=2)[7]
    store.merge([changed], 1.0)
    update = follower.follow(store)
    assert (update.full, update.replicas, update.groups) == (False, (changed,), None)
    assert follower.follow(store).replicas == ()


def test_a_batch_is_one_change() -> None:
    store = make_store()
    before = store.version.number
    store.merge(make_fleet(50), 0.0)
    assert store.version.number == before + 1


def test_a_version_of_another_incarnation_gets_the_whole_state() -> None:
    store = make_store(make_stats())
    for foreign in (None, Version("another", store.version.number), Version("one", 999)):
        update = store.changes_since(foreign, 0.0)
        assert update.full
        assert len(update.replicas) == 1
        assert update.groups == ()


def test_who_is_too_far_behind_gets_the_whole_state() -> None:
    store = make_store()
    old = store.version
    for begin in range(0, MAX_REMOVED + 1, 1000):
        store.merge([make_stats(f"r{begin + i}") for i in range(1000)], 0.0)
    store.expire(100.0)
    store.merge([make_stats("last")], 200.0)
    assert store.changes_since(old, 200.0).full
    assert not store.changes_since(store.version, 200.0).full
    store.check_integrity()


def test_a_group_without_replicas_is_known() -> None:
    store, follower = make_store(), Follower()
    follower.follow(store)
    store.register_group(make_group("idle"), 0.0)
    assert follower.follow(store).groups == (make_group("idle"),)
    store.expire(10_000.0)
    assert follower.follow(store).groups is None
    assert follower.groups.keys() == {"idle"}


def test_registering_the_same_group_again_is_no_change() -> None:
    store = make_store()
    store.register_group(make_group(), 0.0)
    before = store.version
    store.register_group(make_group(), 5.0)
    assert store.version == before
    store.register_group(make_group(max_replicas=4), 6.0)
    assert store.changes_since(before, 6.0).groups == (make_group(max_replicas=4),)


def test_a_deregistered_group_does_not_return_by_hearsay() -> None:
    store = make_store()
    store.register_group(make_group(created_s=1.0), 0.0)
    store.deregister_group("g", 1.0)
    store.restore_groups([make_group(created_s=9.0)], 2.0)
    assert store.group_count == 0
    store.register_group(make_group(created_s=3.0), 3.0)
    assert store.group_count == 1
    store.deregister_group("g", 4.0)
    store.expire(5.0 + DEREGISTERED_S)
    store.restore_groups([make_group()], 6.0 + DEREGISTERED_S)
    assert store.group_count == 1


def test_hearsay_does_not_replace_a_newer_registration() -> None:
    store = make_store()
    store.register_group(make_group(created_s=2.0, max_replicas=9), 0.0)
    store.restore_groups([make_group(created_s=1.0, max_replicas=1)], 0.0)
    assert store.changes_since(None, 0.0).groups == (make_group(created_s=2.0, max_replicas=9),)


def test_groups_of_gone_applications_are_forgotten_after_their_grace() -> None:
    store = make_store()
    store.register_group(make_group("a"), 0.0)
    store.register_group(make_group("b", labels={"application": "app"}), 0.0)
    store.register_group(make_group("c"), 0.0)
    assert store.applications_alive(["a", "app"], GROUP_GRACE_S - 1) == ()
    assert store.applications_alive(["a", "app"], GROUP_GRACE_S) == ("c",)
    store.register_group(make_group("d"), 100.0)
    assert store.applications_alive([], 101.0) == ("a", "b")
    assert [g.name for g in store.changes_since(None, 0.0).groups or ()] == ["d"]


_replica_ids = st.sampled_from(["r1", "r2", "r3"])
_steps = st.one_of(
    st.tuples(st.just("merge"), _replica_ids, st.sampled_from("abc"), st.integers(0, 5)),
    st.tuples(st.just("sleep"), st.floats(0.1, 12.0)),
    st.tuples(st.just("register"), st.sampled_from(["g", "h"]), st.integers(1, 3)),
    st.tuples(st.just("deregister"), st.sampled_from(["g", "h"])),
    st.tuples(st.just("follow")),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(_steps, max_size=40))
def test_a_follower_of_deltas_knows_what_the_store_knows(steps: list[tuple[str, ...]]) -> None:
    store, follower, now_s = make_store(), Follower(), 0.0
    for step in [*steps, ("follow",)]:
        match step:
            case ("merge", replica_id, epoch, sequence):
                stats = make_stats(replica_id, int(sequence), epoch=epoch)
                store.merge([stats], now_s)
            case ("sleep", seconds):
                now_s += float(seconds)
                store.expire(now_s)
            case ("register", name, replicas):
                store.register_group(make_group(name, max_replicas=replicas), now_s)
            case ("deregister", name):
                store.deregister_group(name, now_s)
            case _:
                follower.follow(store, now_s)
        store.check_integrity()
    whole = Follower()
    whole.apply(store.changes_since(None, now_s))
    assert (follower.replicas, follower.groups) == (whole.replicas, whole.groups)


def test_a_thousand_replicas_are_merged_and_followed_within_their_period() -> None:
    """Takes about 20 ms of a period of 500 ms; the bound only catches a change of kind."""
    store, follower = make_store(*make_fleet(1000)), Follower()
    follower.follow(store)
    began_s = time.perf_counter()
    for sequence in range(2, 7):
        store.merge(make_fleet(1000, sequence), float(sequence))
        assert len(follower.follow(store).replicas) == 1000
    assert (time.perf_counter() - began_s) / 5 < 0.25
