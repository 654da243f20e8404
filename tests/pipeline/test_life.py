"""The life of a request as a pure object, on a clock that the test turns."""

from __future__ import annotations

import pytest

from aibrix_ray.errors import (
    BadRequest,
    DeadlineExceeded,
    ModelNotFound,
    NoReplica,
    Overloaded,
    ReplicaFailed,
)
from aibrix_ray.pipeline import Life, ModelState, Pipeline
from aibrix_ray.types import Ending, Outcome, ReplicaView, RequestView, Usage, Verdict
from tests.pipeline.world import Scripted, World

# Names


def make_pipeline(*models: str, **aliases: str) -> Pipeline:
    pipeline = Pipeline()
    for name in models:
        pipeline.models[name] = ModelState(name, Scripted())
    pipeline.set_aliases(aliases)
    return pipeline


def test_a_model_has_its_own_name_and_its_aliases() -> None:
    pipeline = make_pipeline("m", "n", best="m")
    assert pipeline.resolve("m").name == pipeline.resolve("best").name == "m"
    assert sorted(pipeline.names()) == ["best", "m", "n"]


def test_an_own_name_wins_over_an_alias() -> None:
    assert make_pipeline("m", "n", m="n").resolve("m").name == "m"


@pytest.mark.parametrize("nothing", [None, ""])
def test_one_model_need_not_be_named_and_one_of_several_must(nothing: object) -> None:
    assert make_pipeline("m").resolve(nothing).name == "m"
    for models in ((), ("m", "n")):
        with pytest.raises(BadRequest) as refused:
            make_pipeline(*models).resolve(nothing)
        assert refused.value.param == "model"
        assert (", ".join(models) or "(none yet)") in refused.value.message


@pytest.mark.parametrize("name", [1, 0, False, [], {}, b"m"])
def test_a_name_is_a_string(name: object) -> None:
    with pytest.raises(BadRequest, match="must be a string"):
        make_pipeline("m").resolve(name)


def test_an_alias_waits_for_its_model() -> None:
    pipeline = make_pipeline("m", late="n")
    with pytest.raises(ModelNotFound):
        pipeline.resolve("late")
    assert "late" not in pipeline.names()
    pipeline.models["n"] = ModelState("n", Scripted())
    assert pipeline.resolve("late").name == "n"


def test_aliases_are_replaced_as_a_whole() -> None:
    pipeline = make_pipeline("m", old="m")
    pipeline.set_aliases({"new": "m"})
    assert pipeline.aliases == {"new": "m"}
    with pytest.raises(ModelNotFound):
        pipeline.resolve("old")


def test_a_life_begins_at_its_arrival() -> None:
    pipeline = make_pipeline("m")
    request = RequestView("id", "m")
    life = pipeline.begin(pipeline.resolve("m"), request, 42.0)
    assert (life.request, life.model.name, life.arrived_s, life.attempts) == (request, "m", 42.0, 0)


# Sending and retrying


def test_a_request_goes_where_the_policy_says() -> None:
    world = World(3)
    assert world.chosen() == "r0"
    assert world.life.attempts == 1
    assert (world.policy.shown, world.policy.at_s) == ([["r0", "r1", "r2"]], [100.0])


def test_a_retry_goes_elsewhere() -> None:
    world = World(3)
    for tried in range(3):
        assert world.chosen() == f"r{tried}"
        world.life.failed(world.replica(tried), "reset")
    assert world.policy.shown == [["r0", "r1", "r2"], ["r1", "r2"], ["r2"]]


def test_after_max_attempts_it_is_over_and_the_last_reason_is_told() -> None:
    world = World(5, max_attempts=2)
    for tried, reason in enumerate(("refused", "reset by peer")):
        world.chosen()
        world.life.failed(world.replica(tried), reason)
    with pytest.raises(ReplicaFailed, match=r"2 replicas of `m` .*; the last one: reset by peer"):
        world.next()


def test_a_refusal_of_a_draining_replica_costs_no_attempt() -> None:
    world = World(4, max_attempts=1)
    for tried in range(3):
        assert world.chosen() == f"r{tried}"
        world.life.refused(world.replica(tried))
    assert world.life.attempts == 0
    assert world.chosen() == "r3"


def test_when_all_have_refused_it_waits_and_may_ask_them_again() -> None:
    world = World(1, max_attempts=1)
    world.chosen()
    world.life.refused(world.replica(0))
    world.waits_until()
    assert world.chosen() == "r0"


def test_when_all_were_tried_it_waits_and_may_try_them_again() -> None:
    world = World(2, max_attempts=3)
    for tried in range(2):
        world.chosen()
        world.life.failed(world.replica(tried), "reset")
    world.waits_until()
    assert world.chosen() == "r0"
    world.life.failed(world.replica(0), "reset")
    with pytest.raises(ReplicaFailed, match="3 replicas"):
        world.next()


# Waiting


def test_without_a_replica_it_waits_so_long_and_no_longer() -> None:
    world = World(wait_for_replica_s=60.0)
    assert world.waits_until() == 160.0
    world.now_s = 159.9
    assert world.waits_until() == 160.0
    world.now_s = 160.0
    with pytest.raises(NoReplica, match="within 60 s") as refused:
        world.next()
    assert refused.value.retry_after_s == 1.0


def test_a_replica_that_comes_in_time_is_taken() -> None:
    world = World()
    world.waits_until()
    world.now_s = 159.9
    world.join(1)
    assert world.chosen() == "r0"


def test_with_no_wait_allowed_it_is_refused_at_once() -> None:
    with pytest.raises(NoReplica):
        World(wait_for_replica_s=0.0).next()


def test_the_wait_counts_from_when_it_has_to_wait() -> None:
    world = World(1, wait_for_replica_s=60.0)
    world.chosen()
    world.now_s = 500.0  # the replica dies after it has computed for long
    world.life.failed(world.replica(0), "reset")
    world.join(0)
    assert world.waits_until() == 560.0
    world.now_s = 559.0
    assert world.waits_until() == 560.0
    world.join(1)
    world.chosen()
    world.now_s = 700.0
    world.life.failed(world.replica(0), "reset")
    assert world.waits_until() == 760.0, "a second wait is as long as the first"


def test_who_gives_up_waiting_tells_what_had_failed() -> None:
    world = World(1, wait_for_replica_s=10.0)
    world.chosen()
    world.life.failed(world.replica(0), "connection lost")
    world.waits_until()
    world.join(0)
    world.now_s = 110.0
    with pytest.raises(NoReplica, match=r"\(connection lost\)"):
        world.next()


@pytest.mark.parametrize(("configured", "advised"), [(0.2, 1.0), (1.0, 1.0), (30.0, 30.0)])
def test_the_advice_to_come_back_is_never_under_a_second(configured: float, advised: float) -> None:
    with pytest.raises(NoReplica) as refused:
        World(wait_for_replica_s=0.0, retry_after_s=configured).next()
    assert refused.value.retry_after_s == advised


def test_the_requests_own_deadline_ends_the_wait() -> None:
    world = World(timeout_s=30.0, wait_for_replica_s=60.0)
    world.waits_until()
    world.now_s = 130.0
    with pytest.raises(DeadlineExceeded, match="30 s"):
        world.next()


# Policies and full replicas


def test_a_policy_may_let_it_wait() -> None:
    world = World(1, Verdict.QUEUE)
    assert world.waits_until() == 160.0
    assert world.life.attempts == 0
    assert world.chosen() == "r0"


def test_a_policy_may_reject() -> None:
    world = World(1, Verdict.REJECT, retry_after_s=7.0)
    with pytest.raises(Overloaded, match="as told") as refused:
        world.next()
    assert refused.value.retry_after_s == 7.0
    assert world.life.attempts == 0


def test_a_full_replica_is_taken_out_of_the_choice() -> None:
    world = World(3)
    world.replica(0).max_outstanding = 2
    world.replica(0).in_flight = 1
    world.replica(0).load_base = 1
    assert world.chosen() == "r1"
    assert world.policy.shown[-1] == ["r1", "r2"]
    assert world.life.attempts == 1


def test_when_all_are_full_it_is_told_to_come_back() -> None:
    world = World(2, retry_after_s=3.0, max_waiting=0)
    for replica in world.model.ready:
        replica.in_flight = replica.max_outstanding
    with pytest.raises(Overloaded, match="all 2 ready replicas of `m` are full") as refused:
        world.next()
    assert refused.value.retry_after_s == 3.0
    assert world.life.attempts == 0


def test_full_replicas_and_those_already_tried_leave_the_rest() -> None:
    world = World(3)
    world.chosen()
    world.life.failed(world.replica(0), "reset")
    world.replica(1).in_flight = world.replica(1).max_outstanding
    assert world.chosen() == "r2"


def test_among_the_unfilled_a_policy_may_still_let_it_wait() -> None:
    world = World(2, Verdict.SEND, Verdict.QUEUE)
    world.replica(0).in_flight = world.replica(0).max_outstanding
    assert world.waits_until() == 160.0


def test_among_the_unfilled_a_policy_may_still_reject() -> None:
    world = World(2, Verdict.SEND, Verdict.REJECT)
    world.replica(0).in_flight = world.replica(0).max_outstanding
    with pytest.raises(Overloaded):
        world.next()


# The end


def test_the_policy_learns_how_an_attempt_ended() -> None:
    world = World(1)
    usage = Usage(prompt_tokens=1)
    world.life.ended(
        world.replica(0),
        Ending.COMPLETED,
        now_s=1.0,
        status=200,
        ttft_s=0.1,
        e2e_s=0.2,
        usage=usage,
    )
    assert world.policy.outcomes == [
        Outcome("id", "m", "r0", Ending.COMPLETED, 200, 0.1, 0.2, usage)
    ]


def test_lives_share_nothing_but_their_model() -> None:
    world = World(2)
    world.chosen()
    world.life.failed(world.replica(0), "reset")
    other = Life(world.model, RequestView("other", "m"), 100.0)
    answer = other.next(100.0)
    assert isinstance(answer, ReplicaView)
    assert answer.replica_id == "r0"
