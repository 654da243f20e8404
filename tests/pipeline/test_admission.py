"""A full fleet: who waits, who goes next, and how a wait ends."""

from __future__ import annotations

import pytest

from aibrix_ray.admission import Ticket
from aibrix_ray.errors import DeadlineExceeded, NoReplica, QueueTimeout, ReplicaFailed
from aibrix_ray.pipeline import Life, ModelSettings, Wait
from aibrix_ray.types import ReplicaView, RequestView, Verdict
from tests.pipeline.world import Scripted, World


def full(world: World, *, but: int = 0) -> None:
    """Fill every replica, except for so many places at the first one."""
    for replica in world.model.members:
        replica.in_flight = replica.max_outstanding
    if but:
        world.replica(0).in_flight -= but


def queue_up(world: World, life: Life | None = None) -> Ticket:
    """Let a request wait as whoever drives the pipeline does."""
    life = life or world.life
    wait = life.next(world.now_s)
    assert isinstance(wait, Wait)
    ticket = life.ticket(wait, life)
    assert world.model.queue.wait(ticket, aside=wait.aside) is None
    return ticket


def new_life(world: World, **request: object) -> Life:
    return Life(world.model, RequestView("other", "m", **request), world.now_s)  # type: ignore[arg-type]


def admit(world: World) -> list[Life]:
    """Promise the places that there are."""
    lives = []
    for ticket in world.model.queue.admit(world.model.places(), world.now_s):
        life = ticket.holder
        assert isinstance(life, Life)
        life.admit(ticket)
        lives.append(life)
    return lives


def test_when_all_are_full_it_waits_so_long_and_no_longer() -> None:
    world = World(2, max_wait_s=30.0, retry_after_s=3.0)
    full(world)
    assert world.waits_until() == 130.0
    world.now_s = 129.9
    assert world.waits_until() == 130.0
    world.now_s = 130.0
    with pytest.raises(QueueTimeout, match="no replica of `m` had a place within 30 s") as refused:
        world.next()
    assert (refused.value.status, refused.value.retry_after_s) == (503, 3.0)


def test_the_requests_own_deadline_ends_the_wait_for_a_place_too() -> None:
    world = World(1, timeout_s=10.0)
    full(world)
    ticket = queue_up(world)
    assert ticket.deadline_s == 110.0
    world.now_s = 110.0
    with pytest.raises(DeadlineExceeded):
        world.next()


def test_a_place_is_counted_from_the_replicas_that_are_routed_to() -> None:
    world = World(3)
    full(world)
    world.replica(0).in_flight -= 2
    world.replica(1).load_base = 7  # more than it should have is not less than nothing
    world.replica(2).max_outstanding += 3
    assert world.model.places() == 5


def test_a_request_that_has_just_arrived_does_not_pass_those_who_wait() -> None:
    world = World(1)
    full(world)
    queue_up(world)
    full(world, but=1)
    late = new_life(world)
    assert isinstance(late.next(world.now_s), Wait)
    queue_up(world, late)
    assert admit(world) == [world.life]
    assert isinstance(new_life(world).next(world.now_s), Wait), "the free place is promised"
    assert world.chosen() == "r0"
    world.replica(0).in_flight += 1
    assert admit(world) == []
    assert world.model.queue.line == 1


def test_a_request_that_is_on_its_way_is_not_put_behind_those_who_wait() -> None:
    world = World(2)
    world.chosen()
    world.life.failed(world.replica(0), "reset")
    full(world)
    queue_up(world, new_life(world))
    full(world, but=1)
    world.replica(1).in_flight = 0
    assert world.chosen() == "r1"


def test_a_higher_priority_goes_first_and_nobody_is_lost() -> None:
    world = World(1)
    full(world)
    low, high = new_life(world), new_life(world, priority=1)
    for life in (low, high):
        queue_up(world, life)
    full(world, but=2)
    assert admit(world) == [high, low]


def test_a_ticket_says_what_a_discipline_may_know() -> None:
    world = World(1)
    full(world)
    request = {"tenant": "t", "priority": 2, "prompt": b"x" * 40, "max_tokens": 5}
    ticket = queue_up(world, new_life(world, **request))
    assert (ticket.tenant, ticket.priority, ticket.expected_tokens) == ("t", 2, 15)
    assert (ticket.arrived_s, ticket.deadline_s) == (100.0, 130.0)


def test_who_was_admitted_and_finds_no_place_keeps_its_turn() -> None:
    world = World(1)
    full(world)
    queue_up(world)
    world.now_s = 101.0
    later = new_life(world)
    queue_up(world, later)
    full(world, but=1)
    assert admit(world) == [world.life]
    full(world)  # by a report: another gateway was faster
    queue_up(world)
    assert world.model.queue.promised == 0
    full(world, but=2)
    assert admit(world) == [world.life, later]


def test_who_waits_for_a_first_replica_waits_in_the_same_queue() -> None:
    world = World()
    queue_up(world)
    assert (world.model.held, world.model.places()) == (1, 0)
    world.join(1)
    assert world.model.held == 0, "there is a replica now; it waits for a place there"
    assert admit(world) == [world.life]
    assert world.chosen() == "r0"


def test_who_has_tried_all_waits_for_a_change_and_not_for_a_place() -> None:
    world = World(1)
    world.chosen()
    world.life.failed(world.replica(0), "reset")
    wait = world.next()
    assert isinstance(wait, Wait)
    assert wait.aside
    world.model.queue.wait(world.life.ticket(wait, world.life), aside=True)
    assert world.model.held == 1
    assert admit(world) == []
    world.join(1)
    assert admit(world) == [world.life]


def test_a_wait_for_a_replica_that_came_full_ends_as_a_wait_for_a_place() -> None:
    world = World(wait_for_replica_s=60.0, max_wait_s=30.0)
    queue_up(world)
    world.join(1)
    full(world)
    world.now_s = 160.0
    with pytest.raises(QueueTimeout):
        world.next()


def test_a_wait_for_a_place_whose_replicas_went_ends_as_a_wait_for_a_replica() -> None:
    world = World(1, wait_for_replica_s=60.0, max_wait_s=30.0)
    full(world)
    queue_up(world)
    world.join(0)
    world.now_s = 130.0
    world.model.queue.expire(world.now_s)
    assert world.waits_until() == 160.0
    world.now_s = 160.0
    with pytest.raises(NoReplica):
        world.next()


def test_other_settings_take_hold_while_requests_wait() -> None:
    world = World(1)
    full(world)
    low, high = new_life(world), new_life(world, priority=1)
    queue_up(world, low)
    world.now_s = 101.0
    high = new_life(world, priority=1)
    queue_up(world, high)
    world.model.configure(Scripted(), ModelSettings(max_waiting=7, aging_s=0.5))
    assert world.model.queue.capacity == 7
    full(world, but=2)
    assert admit(world) == [low, high], "a second of waiting is worth two classes now"


# A second replica


def test_a_second_replica_is_one_that_has_a_place_and_was_not_tried() -> None:
    world = World(4)
    first = world.next()
    world.life.failed(world.replica(0), "reset")
    first = world.next()
    assert first is world.replica(1)
    full(world)
    assert world.life.hedge(world.replica(1), world.now_s) is None
    world.replica(3).in_flight = 0
    assert world.life.hedge(world.replica(1), world.now_s) is world.replica(3)


def test_no_second_replica_is_asked_while_others_wait_for_a_first() -> None:
    world = World(2)
    first = world.next()
    assert isinstance(first, ReplicaView)
    full(world)
    queue_up(world, new_life(world))
    world.replica(1).in_flight = 0
    assert world.life.hedge(first, world.now_s) is None


def test_a_policy_may_be_against_a_second_replica() -> None:
    world = World(2, Verdict.SEND, Verdict.QUEUE)
    first = world.next()
    assert isinstance(first, ReplicaView)
    assert world.life.hedge(first, world.now_s) is None


def test_a_second_replica_costs_no_attempt() -> None:
    world = World(3, max_attempts=1)
    first = world.next()
    assert isinstance(first, ReplicaView)
    world.life.hedge(first, world.now_s)
    assert world.life.attempts == 1
    world.life.failed(first, "reset")
    with pytest.raises(ReplicaFailed):
        world.next()
