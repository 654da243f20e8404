from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.routing import LeastRequest
from aibrix_ray.types import Ending, Outcome, ReplicaView, RequestView, Verdict

REQUEST = RequestView("id", "m")


def make_replicas(*loads: tuple[int, int]) -> list[ReplicaView]:
    """Return replicas of (our own, others') requests."""
    return [
        ReplicaView(f"r{i}", "g", "m", in_flight=own, load_base=others)
        for i, (own, others) in enumerate(loads)
    ]


def choose(policy: LeastRequest, replicas: list[ReplicaView]) -> ReplicaView:
    decision = policy.choose(REQUEST, replicas, 0.0)
    assert decision.verdict is Verdict.SEND
    assert decision.replica is not None
    return decision.replica


LOADS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=12)


@given(loads=LOADS, seed=st.integers(0, 2**32), asked=st.integers(0, 20))
def test_no_replica_has_less_load_than_the_chosen_one(
    loads: list[tuple[int, int]], seed: int, asked: int
) -> None:
    policy = LeastRequest(seed=seed)
    replicas = make_replicas(*loads)
    for _ in range(asked):
        choose(policy, replicas)
    assert choose(policy, replicas).load == min(own + others for own, others in loads)


@given(loads=LOADS, seed=st.integers(0, 2**32))
def test_a_choice_changes_nothing_that_it_was_given(
    loads: list[tuple[int, int]], seed: int
) -> None:
    replicas = make_replicas(*loads)
    choose(LeastRequest(seed=seed), replicas)
    assert [(r.in_flight, r.load_base) for r in replicas] == loads
    assert [r.replica_id for r in replicas] == [f"r{i}" for i in range(len(loads))]


@given(count=st.integers(1, 12), rounds=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_equal_replicas_are_shared_equally(count: int, rounds: int, seed: int) -> None:
    policy = LeastRequest(seed=seed)
    replicas = make_replicas(*[(0, 0)] * count)
    chosen = Counter(choose(policy, replicas).replica_id for _ in range(count * rounds))
    assert set(chosen.values()) == {rounds}


def test_ties_among_the_least_are_shared_too() -> None:
    policy = LeastRequest(seed=1)
    replicas = make_replicas((5, 0), (1, 1), (0, 2), (9, 9), (2, 0))
    chosen = Counter(choose(policy, replicas).replica_id for _ in range(50))
    assert chosen.keys() == {"r1", "r2", "r4"}
    assert min(chosen.values()) >= 10


def test_what_others_sent_counts_like_our_own() -> None:
    policy = LeastRequest(seed=0)
    replicas = make_replicas((0, 10), (3, 0), (0, 4))
    assert choose(policy, replicas).replica_id == "r1"
    replicas[1].in_flight += 2
    assert choose(policy, replicas).replica_id == "r2"


def test_gateways_with_other_seeds_begin_elsewhere() -> None:
    replicas = make_replicas(*[(0, 0)] * 8)
    firsts = {choose(LeastRequest(seed=seed), replicas).replica_id for seed in range(50)}
    assert len(firsts) > 4


def test_the_same_seed_chooses_the_same() -> None:
    replicas = make_replicas(*[(0, 0)] * 8)
    one, other = LeastRequest(seed=3), LeastRequest(seed=3)
    for _ in range(20):
        assert choose(one, replicas) is choose(other, replicas)


def test_membership_may_change_between_choices() -> None:
    policy = LeastRequest(seed=0)
    for count in (7, 1, 12, 2, 1, 5):
        replicas = make_replicas(*[(0, 0)] * count)
        assert choose(policy, replicas) in replicas


def test_it_learns_nothing_from_endings() -> None:
    policy = LeastRequest(seed=0)
    policy.observe(Outcome("id", "m", "r0", Ending.FAILED))
    replicas = make_replicas((0, 0), (1, 0))
    assert choose(policy, replicas).replica_id == "r0"
