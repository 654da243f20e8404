"""Who is routed to while some fail or are stuck."""

from __future__ import annotations

from typing import Any

from aibrix_ray.outliers import OutlierSettings
from aibrix_ray.pipeline import STALE_S, Life, Wait
from aibrix_ray.types import Ending, ReplicaStats, RequestView
from tests.pipeline.world import World

FAST = OutlierSettings(consecutive_failures=2, ejection_s=5.0, silent_s=5.0)


def make_world(replicas: int = 3, **settings: Any) -> World:
    return World(replicas, outliers=settings.pop("outliers", FAST), **settings)


def end(world: World, index: int, ending: Ending, times: int = 1, **outcome: Any) -> None:
    for _ in range(times):
        replica = world.replica(index)
        world.life.ended(replica, ending, now_s=world.now_s, **outcome)


def report(world: World, *indexes: int, **figures: Any) -> None:
    """Let replicas report that they work, and look at it."""
    for index in indexes:
        replica = world.replica(index)
        replica.stats = ReplicaStats(
            replica.replica_id, "g", "m", "e", 1, **{"running": 1, "waiting": 0, **figures}
        )
        replica.stats_at_s = replica.progress_s = world.now_s
    judge(world)


def judge(world: World, seconds: float = 0.0) -> None:
    world.now_s += seconds
    world.model.judge(world.now_s)


def ready(world: World) -> list[str]:
    return [replica.replica_id for replica in world.model.ready]


def new_life(world: World, **request: Any) -> Life:
    return Life(world.model, RequestView("other", "m", **request), world.now_s)


# Failures


def test_a_replica_that_fails_is_not_routed_to() -> None:
    world = make_world()
    end(world, 0, Ending.FAILED, times=2, status=500)
    assert ready(world) == ["r1", "r2"]
    assert world.model.left_out == 1
    assert world.chosen() == "r1"


def test_refusals_client_errors_and_clients_that_leave_eject_nobody() -> None:
    world = make_world()
    for ending in (Ending.CLIENT_ERROR, Ending.CANCELLED, Ending.REJECTED, Ending.COMPLETED):
        end(world, 0, ending, times=50, status=429)
    assert ready(world) == ["r0", "r1", "r2"]


def test_where_all_fail_all_are_asked() -> None:
    world = make_world(2, outliers=OutlierSettings(consecutive_failures=1, max_ejected_share=1.0))
    for index in range(2):
        end(world, index, Ending.FAILED)
    assert world.model.outliers.out == 2
    assert ready(world) == ["r0", "r1"]
    assert world.chosen() == "r0"


def test_a_request_that_has_tried_the_others_may_try_one_that_is_left_out() -> None:
    world = make_world(2)
    end(world, 0, Ending.FAILED, times=2)
    assert world.chosen() == "r1"
    world.life.failed(world.replica(1), "reset")
    assert world.chosen() == "r0"


def test_half_open_means_one_request() -> None:
    world = make_world()
    end(world, 0, Ending.FAILED, times=2)
    judge(world, 5.0)
    assert world.chosen() == "r0"
    assert ready(world) == ["r1", "r2"]
    other = new_life(world).next(world.now_s)
    assert not isinstance(other, Wait)
    assert other.replica_id == "r1"
    end(world, 0, Ending.COMPLETED, status=200)
    assert ready(world) == ["r0", "r1", "r2"]


def test_a_request_that_has_failed_before_is_no_probe() -> None:
    world = make_world()
    assert world.chosen() == "r0"
    world.life.failed(world.replica(0), "reset")
    end(world, 0, Ending.FAILED, times=2)
    judge(world, 5.0)
    assert world.chosen() == "r1"


def test_an_ejection_gives_those_who_stand_aside_another_turn() -> None:
    world = make_world(2)
    for index in range(2):
        world.chosen()
        world.life.failed(world.replica(index), "reset")
    wait = world.next()
    assert isinstance(wait, Wait)
    world.model.queue.wait(world.life.ticket(wait, None), aside=wait.aside)
    end(world, 0, Ending.FAILED, times=2)
    assert (world.model.queue.aside, world.model.queue.line) == (0, 1)


def test_only_streams_are_compared_by_their_first_byte() -> None:
    world = make_world(outliers=OutlierSettings(latency_factor=2.0, min_requests=1))
    end(world, 0, Ending.COMPLETED, ttft_s=100.0)
    end(world, 1, Ending.COMPLETED, ttft_s=1.0)
    judge(world)
    assert ready(world) == ["r0", "r1", "r2"]
    world.life = new_life(world, stream=True)
    end(world, 0, Ending.COMPLETED, ttft_s=100.0)
    end(world, 1, Ending.COMPLETED, ttft_s=1.0)
    judge(world)
    assert ready(world) == ["r1", "r2"]


# Silence (U17, U18, U20)


def test_a_replica_that_is_stuck_is_left_out_until_it_shows_a_sign_of_work() -> None:
    """U17: of the pure part, its trigger; `tests/dataplane/test_stuck.py` has the rest."""
    world = make_world()
    report(world, 0, 1, 2)
    world.now_s += 5.1
    report(world, 1, 2)
    judge(world)
    assert ready(world) == ["r1", "r2"]
    assert world.model.is_stuck(world.replica(0), world.now_s)
    report(world, 0)
    judge(world)
    assert ready(world) == ["r0", "r1", "r2"]


def test_a_replica_that_reports_and_makes_no_progress_is_left_out() -> None:
    """U20: its process answers, its engine does not move; but it is not given up."""
    world = make_world()
    report(world, 0, 1, 2)
    world.now_s += 5.1
    report(world, 1, 2)
    world.replica(0).stats_at_s = world.now_s
    judge(world)
    assert ready(world) == ["r1", "r2"]
    assert not world.model.is_stuck(world.replica(0), world.now_s)


def test_an_answer_is_a_sign_of_work_whatever_the_reports_say() -> None:
    """U18, a neighbour: only the reports of one replica are lost."""
    world = make_world()
    report(world, 0, 1, 2)
    world.now_s += 5.1
    report(world, 1, 2)
    end(world, 0, Ending.COMPLETED)
    judge(world)
    assert ready(world) == ["r0", "r1", "r2"]


def test_with_no_reports_at_all_everybody_is_routed_to() -> None:
    """U18: fail open, on our own counts."""
    world = make_world()
    report(world, 0, 1, 2)
    for index in range(3):
        world.replica(index).load_base = 512
    assert isinstance(world.next(), Wait), "by their reports they are full"
    judge(world, STALE_S + 0.1)
    assert ready(world) == ["r0", "r1", "r2"]
    assert [r.load for r in world.model.ready] == [0, 0, 0]
    assert world.chosen() == "r0"


def test_a_single_replica_is_never_left_out() -> None:
    """U18: one replica, late reports."""
    world = make_world(1)
    report(world, 0)
    world.replica(0).load_base = 512
    end(world, 0, Ending.FAILED, times=10)
    judge(world, 1000.0)
    assert world.chosen() == "r0"


def test_a_silent_replica_is_tried_by_one_request_where_there_is_no_other_place() -> None:
    world = make_world()
    report(world, 0, 1, 2)
    world.now_s += 5.1
    report(world, 1, 2)
    judge(world)
    for index in (1, 2):
        world.replica(index).in_flight = world.replica(index).max_outstanding
    assert world.model.places() == 1
    assert world.chosen() == "r0"
    world.replica(0).in_flight = 1
    assert isinstance(new_life(world).next(world.now_s), Wait)
    end(world, 0, Ending.COMPLETED)
    judge(world)
    assert ready(world) == ["r0", "r1", "r2"]


def test_silence_can_be_allowed() -> None:
    world = make_world(outliers=OutlierSettings(silent_s=None))
    report(world, 0, 1)
    world.now_s += 1000.0
    report(world, 1)
    judge(world)
    assert ready(world) == ["r0", "r1", "r2"]
    assert not world.model.is_stuck(world.replica(0), world.now_s)


def test_a_replica_that_leaves_membership_is_not_stuck_when_it_is_back() -> None:
    world = make_world()
    members = list(world.model.members)
    report(world, 0, 1, 2)
    world.now_s += 5.1
    report(world, 1, 2)
    judge(world)
    world.model.set_members(members[1:], members)
    world.model.set_members(members, members)
    assert ready(world) == ["r0", "r1", "r2"]


def test_how_a_replica_fared_is_remembered_while_it_is_known() -> None:
    world = make_world()
    members = list(world.model.members)
    end(world, 0, Ending.FAILED, times=2)
    world.model.set_members(members[1:], members)
    world.model.set_members(members, members)
    assert ready(world) == ["r1", "r2"]
    world.model.set_members(members[1:], members[1:])
    world.model.set_members(members, members)
    assert ready(world) == ["r0", "r1", "r2"]


def test_a_request_moves_only_where_it_can_go() -> None:
    world = make_world(2, max_attempts=2)
    assert world.chosen() == "r0"
    assert world.life.may_move(world.replica(0))
    world.life.failed(world.replica(0), "moved")
    assert world.chosen() == "r1"
    assert not world.life.may_move(world.replica(1)), "it was the last attempt"
    other = new_life(world)
    other.next(world.now_s)
    world.model.set_members(world.model.members[:1], world.model.members)
    assert not other.may_move(world.replica(0)), "there is nobody else"
