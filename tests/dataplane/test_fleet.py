"""The fleet: membership and state are two things."""

from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.admission import AdmissionQueue, Ticket
from aibrix_ray.dataplane import Address, Fleet, Member
from aibrix_ray.dataplane.fleet import Replica
from aibrix_ray.pipeline import ModelSettings, Pipeline
from aibrix_ray.types import GroupInfo, ReplicaStats
from tests.dataplane.policies import First


class World:
    """A fleet with the group `g` of the model `m`."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()
        self.settings = ModelSettings()
        self.policies = 0
        self.fleet = Fleet(
            self.pipeline, make_policy=self._policy, settings_of=lambda name: self.settings
        )
        self.fleet.set_groups([make_group("g")])

    def _policy(self, model: str) -> First:
        self.policies += 1
        return First(seed=0)

    def join(self, *names: str, group: str = "g", epoch: str = "e1") -> None:
        self.fleet.set_members(group, [make_member(name, epoch=epoch) for name in names])

    def report(self, name: str = "r1", *, now_s: float = 0.0, **fields: Any) -> None:
        self.fleet.apply_stats([make_stats(name, **fields)], now_s)

    def replica(self, name: str = "r1", group: str = "g") -> Replica:
        (found,) = [r for r in self.fleet.replicas(group) if r.replica_id == name]
        return found

    def ready(self, model: str = "m") -> list[str]:
        return [replica.replica_id for replica in self.pipeline.models[model].ready]


def make_group(name: str, model: str = "m", **fields: Any) -> GroupInfo:
    return GroupInfo(name=name, model=model, **fields)


def make_member(name: str, *, epoch: str = "e1", at: str = "") -> Member:
    return Member(name, Address(uds=at or f"/run/{name}.sock"), node_id="n1", epoch=epoch)


def make_stats(name: str = "r1", **fields: Any) -> ReplicaStats:
    fixed = {"group": "g", "model": "m", "epoch": "e1", "sequence": 1, "running": 0, "waiting": 0}
    return ReplicaStats(name, **{**fixed, **fields})


@pytest.fixture
async def world() -> World:
    return World()


# Membership


async def test_membership_is_replaced_as_a_whole(world: World) -> None:
    world.join("r1", "r2")
    assert world.ready() == ["r1", "r2"]
    world.join("r2", "r3")
    assert world.ready() == ["r2", "r3"]
    world.join()
    assert world.ready() == []
    assert list(world.pipeline.models) == ["m"]


async def test_a_replica_takes_after_its_group(world: World) -> None:
    world.fleet.set_groups(
        [make_group("g", accelerator="A10", cost_per_hour=1.5, max_outstanding=7)]
    )
    world.join("r1")
    replica = world.replica()
    assert (replica.group, replica.model, replica.node_id) == ("g", "m", "n1")
    assert (replica.accelerator, replica.cost_per_hour, replica.max_outstanding) == ("A10", 1.5, 7)
    assert replica.header == (b"target-replica", b"r1")


async def test_a_replica_that_stays_keeps_its_counts(world: World) -> None:
    world.join("r1")
    before = world.replica()
    before.in_flight = 3
    world.join("r1", "r2")
    assert world.replica() is before


@pytest.mark.parametrize(
    "changed", [make_member("r1", epoch="e2"), make_member("r1", at="/run/other.sock")]
)
async def test_another_epoch_or_address_is_another_replica_of_the_same_name(
    world: World, changed: Member
) -> None:
    world.join("r1")
    before = world.replica()
    before.in_flight = 3
    before.draining = True
    world.fleet.set_members("g", [changed])
    after = world.replica()
    assert after is not before
    assert (after.in_flight, after.draining, after.stats) == (0, False, None)
    assert world.ready() == ["r1"]


async def test_members_of_a_group_that_is_not_known_are_ignored(world: World) -> None:
    world.join("r9", group="unknown")
    assert world.fleet.replicas("unknown") == []
    assert world.ready() == []


async def test_a_model_is_all_of_its_groups(world: World) -> None:
    world.fleet.set_groups([make_group("g"), make_group("h"), make_group("i", model="n")])
    world.join("r1", group="g")
    world.join("r2", group="h")
    world.join("r3", group="i")
    assert world.ready("m") == ["r1", "r2"]
    assert world.ready("n") == ["r3"]
    assert world.fleet.groups.keys() == {"g", "h", "i"}


async def test_a_model_goes_with_its_last_group(world: World) -> None:
    world.fleet.set_groups([make_group("g"), make_group("h")])
    world.join("r1", group="g")
    world.join("r2", group="h")
    world.fleet.set_groups([make_group("h")])
    assert world.ready() == ["r2"]
    held = world.pipeline.models["m"]
    world.fleet.set_groups([make_group("i", model="n")])
    assert list(world.pipeline.models) == ["n"]
    assert held.ready == [], "who is held for it is sent nowhere"
    assert world.fleet.replicas("h") == []


async def test_a_group_that_comes_again_starts_empty(world: World) -> None:
    world.join("r1")
    world.fleet.set_groups([])
    world.fleet.set_groups([make_group("g")])
    assert world.ready() == []


async def test_a_model_that_stays_keeps_its_policy(world: World) -> None:
    policy = world.pipeline.models["m"].policy
    world.fleet.set_groups([make_group("g"), make_group("h", model="n")])
    assert world.pipeline.models["m"].policy is policy
    assert world.policies == 2


async def test_new_settings_reach_every_model(world: World) -> None:
    policy = world.pipeline.models["m"].policy
    world.settings = ModelSettings(max_attempts=9)
    world.fleet.reconfigure()
    assert world.pipeline.models["m"].settings.max_attempts == 9
    assert world.pipeline.models["m"].policy is not policy


# State


async def test_a_replica_without_a_report_is_known_by_our_own_count(world: World) -> None:
    world.join("r1")
    replica = world.replica()
    assert (replica.stats, replica.load) == (None, 0)
    replica.in_flight = 2
    assert replica.load == 2


async def test_a_report_adds_what_others_sent_and_stays_right_about_our_own(world: World) -> None:
    world.join("r1")
    replica = world.replica()
    replica.in_flight = 3
    world.report(running=8, waiting=2, now_s=5.0)
    assert (replica.load_base, replica.load, replica.stats_at_s) == (7, 10, 5.0)
    replica.in_flight = 1  # two of ours have ended since
    assert replica.load == 8
    replica.in_flight = 6
    assert replica.load == 13


async def test_a_report_older_than_our_requests_never_makes_the_load_negative(
    world: World,
) -> None:
    world.join("r1")
    replica = world.replica()
    replica.in_flight = 5
    world.report(running=1)
    assert (replica.load_base, replica.load) == (0, 5)


async def test_a_report_of_another_epoch_is_late_and_ignored(world: World) -> None:
    world.join("r1", epoch="e2")
    world.report(epoch="e1", running=50, draining=True)
    assert (world.replica().stats, world.replica().load) == (None, 0)
    assert world.ready() == ["r1"]
    world.report(epoch="e2", running=1)
    assert world.replica().load == 1


async def test_where_membership_knows_no_epoch_any_report_counts(world: World) -> None:
    world.join("r1", epoch="")
    world.report(epoch="anything", running=4)
    assert world.replica().load == 4


async def test_a_report_without_a_member_is_ignored(world: World) -> None:
    world.join("r1")
    world.fleet.apply_stats([make_stats("r9"), make_stats("r1", group="other")], 0.0)
    assert world.replica().stats is None
    assert world.ready() == ["r1"]


async def test_a_replica_that_reports_draining_is_routed_around_until_it_no_longer_does(
    world: World,
) -> None:
    world.join("r1", "r2")
    world.report("r1", draining=True)
    assert world.ready() == ["r2"]
    world.report("r1", draining=False)
    assert world.ready() == ["r1", "r2"]


async def test_membership_does_not_end_draining(world: World) -> None:
    world.join("r1", "r2")
    world.fleet.mark_draining(world.replica())
    world.join("r1", "r2")
    assert world.ready() == ["r2"]


async def test_a_replica_that_is_down_comes_back_with_a_report_or_with_membership(
    world: World,
) -> None:
    world.join("r1", "r2")
    world.fleet.mark_down(world.replica())
    assert world.ready() == ["r2"]
    world.report("r2")
    assert world.ready() == ["r2"], "another replica's report says nothing about it"
    world.report("r1")
    assert world.ready() == ["r1", "r2"]
    world.fleet.mark_down(world.replica())
    world.join("r1", "r2")
    assert world.ready() == ["r1", "r2"]


async def test_a_replica_that_is_down_and_drains_stays_away(world: World) -> None:
    world.join("r1")
    world.fleet.mark_down(world.replica())
    world.report("r1", draining=True)
    assert world.ready() == []


# Waiting for a change


def stand_aside(world: World) -> AdmissionQueue:
    """Let a request wait for other replicas; return the queue that it is in."""
    queue = world.pipeline.models["m"].queue
    queue.wait(Ticket(0.0), aside=True)
    return queue


@pytest.mark.parametrize(
    "change", ["join", "leave", "down", "drain", "report", "groups"], ids=lambda name: name
)
async def test_who_waits_for_other_replicas_has_its_turn_after_every_change(
    world: World, change: str
) -> None:
    world.join("r1", "r2")
    queue = stand_aside(world)
    told: list[int] = []
    world.fleet.on_change = lambda: told.append(queue.aside)
    actions = {
        "join": lambda: world.join("r1", "r2", "r3"),
        "leave": lambda: world.join("r2"),
        "down": lambda: world.fleet.mark_down(world.replica()),
        "drain": lambda: world.fleet.mark_draining(world.replica()),
        "report": lambda: world.report("r1", draining=True),
        "groups": lambda: world.fleet.set_groups([make_group("g"), make_group("h")]),
    }
    actions[change]()
    assert set(told) == {0}
    assert len(queue) == 1


async def test_a_report_may_make_a_place_but_is_no_change_of_the_fleet(world: World) -> None:
    world.join("r1")
    queue = stand_aside(world)
    told: list[int] = []
    world.fleet.on_change = lambda: told.append(queue.aside)
    world.report(running=5)
    assert told == [1]


# How much a replica may hold


@pytest.mark.parametrize(
    ("factor", "max_running", "limit"),
    [(None, 8, 100), (2.0, 8, 16), (1.5, 5, 8), (0.1, 4, 1), (50.0, 8, 100), (2.0, None, 100)],
)
async def test_a_replica_holds_a_multiple_of_what_its_engine_runs(
    world: World, factor: float | None, max_running: int | None, limit: int
) -> None:
    world.settings = ModelSettings(running_factor=factor)
    world.fleet.set_groups([make_group("g", max_outstanding=100)])
    world.fleet.reconfigure()
    world.join("r1")
    assert world.replica().max_outstanding == 100, "nothing is known of it yet"
    world.report(max_running=max_running)
    assert world.replica().max_outstanding == limit


async def test_another_factor_holds_at_once(world: World) -> None:
    world.join("r1")
    world.report(max_running=8)
    assert world.replica().max_outstanding == 512
    world.settings = ModelSettings(running_factor=2.0)
    world.fleet.reconfigure()
    assert world.replica().max_outstanding == 16


# Signs of work


@pytest.mark.parametrize(
    ("report", "progress_s"),
    [
        ({"running": 1}, 10.0),
        ({"running": 1, "generation_tokens_total": 1}, 20.0),
        ({"running": 1, "prompt_tokens_total": 1}, 20.0),
        ({"running": 1, "requests_total": 1}, 20.0),
        ({"running": 0}, 20.0),
        ({"waiting": 1}, 10.0),
    ],
)
async def test_a_report_of_new_tokens_or_of_nothing_to_do_shows_progress(
    world: World, report: dict[str, Any], progress_s: float
) -> None:
    world.join("r1")
    world.report(running=1, now_s=10.0)
    world.report(now_s=20.0, **report)
    assert world.replica().progress_s == progress_s
    assert world.replica().stats_at_s == 20.0


async def test_closing_closes_every_channel(world: World) -> None:
    world.join("r1", "r2")
    world.fleet.close()
    assert all(replica.endpoint._closed for replica in world.fleet.replicas("g"))
