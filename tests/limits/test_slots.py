"""Requests at once: never more than the cap, and no slot is lost."""

from __future__ import annotations

import pytest

from aibrix_ray.limits import Book, Kind, Limits, Refusal, Reservation, Subject
from aibrix_ray.limits.exchange import LEASE_S
from aibrix_ray.limits.ledger import RECLAIM_S
from aibrix_ray.limits.slot_lease import FRESH_S
from tests.limits.world import World


def at_once(cap: int) -> list[Subject]:
    return [("tenant:t", Limits(max_concurrent=cap))]


def test_the_cap_is_one_for_all_gateways() -> None:
    """U14: 60 requests on a cap of 4, over 3 gateways."""
    world = World(3)
    found = [world.reserve(world.books[i % 3], at_once(4)) for i in range(60)]
    assert sum(isinstance(item, Reservation) for item in found) == 4
    refusals = [item for item in found if isinstance(item, Refusal)]
    assert len(refusals) == 56
    assert {(item.kind, item.limit) for item in refusals} == {(Kind.CONCURRENT, 4)}


@pytest.mark.parametrize("cap", [1, 2, 5, 23])
def test_a_freed_slot_can_be_had_at_any_gateway(cap: int) -> None:
    """U14's neighbour: the cap is reached exactly, wherever the requests come in."""
    world = World(3)
    held = [world.admit(world.books[i % 3], at_once(cap)) for i in range(cap)]
    for i in range(10):
        world.refuse(world.books[i % 3], at_once(cap))
        held.pop(0).settle(0)
        world.turn(2 * FRESH_S)
        world.sync_all()
        held.append(world.admit(world.books[(i + 1) % 3], at_once(cap)))


def test_tenants_do_not_share_a_cap() -> None:
    """U14's neighbour: a cap belongs to one subject."""
    world = World(2)
    world.admit(world.books[0], at_once(1))
    world.admit(world.books[1], [("tenant:other", Limits(max_concurrent=1))])


@pytest.mark.parametrize("end", ["settle", "cancel", "twice"])
def test_every_end_frees_the_slot_once(end: str) -> None:
    """U15: whatever becomes of a request, and however often it is ended."""
    world = World(2)
    for _ in range(20):
        reservation = world.admit(world.books[0], at_once(1))
        if end != "cancel":
            reservation.settle(0)
        if end != "settle":
            reservation.cancel()
    world.admit(world.books[0], at_once(1))
    world.refuse(world.books[0], at_once(1))


def test_a_request_that_gives_up_waiting_holds_nothing() -> None:
    """U15's neighbour: the client leaves while the authority is asked."""
    world = World(2)
    claim = world.books[0].claim(at_once(1), 1, world.now_s)
    world.sync(world.books[0])  # The slot was granted, for nobody any more.
    world.books[0].end_claim(claim)
    world.sync(world.books[0])
    world.admit(world.books[1], at_once(1))


def test_a_refused_request_holds_no_slot_of_its_other_limits() -> None:
    """U15's neighbour: the model's limit refuses what the tenant's would have admitted."""
    world = World(1)
    book = world.books[0]
    model: Subject = ("model:m", Limits(requests_per_minute=1))
    world.admit(book, [model])
    for _ in range(5):
        world.refuse(book, [*at_once(1), model])
    world.admit(book, at_once(1))


def test_a_dead_gateways_slots_are_reclaimed() -> None:
    world = World(2)
    world.admit(world.books[0], at_once(1))
    world.books.pop(0)
    world.live(RECLAIM_S - 1)
    world.refuse(world.books[0], at_once(1))
    world.live(2.0)
    world.admit(world.books[0], at_once(1))
    assert world.ledger.sessions == 1


def test_a_gateway_that_leaves_takes_nothing_with_it() -> None:
    world = World(2)
    world.admit(world.books[0], at_once(1)).settle(0)
    world.sync(world.books[0], leaves=True)
    assert world.ledger.sessions == 1
    assert world.ledger.leased("tenant:t|concurrent") == 0


def test_a_gateway_without_its_authority_uses_its_slots_and_then_none() -> None:
    world = World(1)
    book = world.books[0]
    for reservation in [world.admit(book, at_once(64)) for _ in range(10)]:
        reservation.settle(0)
    world.admit(book, at_once(64))  # The sync of this one is the last.
    world.sync(book)
    world.lose(book)
    assert isinstance(book.try_reserve(at_once(64), 1, world.now_s), Reservation)
    world.turn(LEASE_S + 0.1)
    refused = book.try_reserve(at_once(64), 1, world.now_s)
    assert isinstance(refused, Refusal)
    assert refused.kind is Kind.CONCURRENT


def test_a_gateway_that_slept_too_long_does_not_use_its_slots() -> None:
    world = World(2)
    asleep, awake = world.books
    world.admit(asleep, at_once(16)).settle(0)
    world.sync(asleep)
    for _ in range(12):
        world.turn(0.5)
        world.sync(awake)
    held = [world.admit(awake, at_once(16)) for _ in range(16)]
    assert asleep.try_reserve(at_once(16), 1, world.now_s) is None
    world.refuse(asleep, at_once(16))
    assert len(held) == 16


def test_a_new_gateway_cannot_have_what_old_ones_hold_when_the_authority_forgot() -> None:
    world = World(2)
    held = [world.admit(world.books[i % 2], at_once(4)) for i in range(4)]
    world.restart()
    newcomer = Book("newcomer")
    assert world.reserve(newcomer, at_once(4)) is None, "it has to wait until the old ones told"
    for _ in range(2):
        world.sync_all()
    world.refuse(newcomer, at_once(4))
    held.pop().settle(0)
    world.turn(2 * FRESH_S)
    world.sync_all()
    world.admit(newcomer, at_once(4))


def test_slots_are_granted_again_when_a_gateway_died_with_the_authority() -> None:
    world = World(2)
    world.admit(world.books[0], at_once(2))
    world.restart()
    world.books.pop()
    assert world.reserve(world.books[0], [("model:m", Limits(max_concurrent=1))]) is None
    world.live(RECLAIM_S + 0.5)
    world.admit(world.books[0], at_once(2))
    world.refuse(world.books[0], at_once(2))


@pytest.mark.parametrize("cap", [1, 10])
def test_a_lower_cap_holds_at_once_for_new_requests(cap: int) -> None:
    world = World(1)
    book = world.books[0]
    held = [world.admit(book, at_once(20)) for _ in range(20)]
    world.refuse(book, at_once(cap))
    for reservation in held:
        reservation.settle(0)
    world.sync(book)
    for _ in range(cap):
        world.admit(book, at_once(cap))
    world.refuse(book, at_once(cap))
