"""Requests and tokens a minute: taken at once, settled later, never twice."""

from __future__ import annotations

import pytest

from aibrix_ray.limits import (
    Book,
    Kind,
    Limits,
    Refusal,
    Reservation,
    Subject,
    excess,
    lease_size,
)
from tests.limits.world import World


def requests_of(limit: int) -> list[Subject]:
    return [("tenant:t", Limits(requests_per_minute=limit))]


def tokens_of(limit: int) -> list[Subject]:
    return [("tenant:t", Limits(tokens_per_minute=limit))]


def admitted(world: World, subjects: list[Subject], tokens: int, times: int) -> int:
    """Ask in turn at every gateway; return how many were admitted."""
    found = [
        world.reserve(world.books[i % len(world.books)], subjects, tokens) for i in range(times)
    ]
    return sum(isinstance(item, Reservation) for item in found)


# Reservation


def test_a_burst_gets_what_fits_and_not_one_more() -> None:
    """U11: 30 requests at once, over 3 gateways, on tokens for 2."""
    world = World(3)
    claims = [
        (book, book.claim(tokens_of(200), 100, world.now_s))
        for _ in range(10)
        for book in world.books
    ]
    world.sync_all()
    found = [book.try_claim(claim, world.now_s) for book, claim in claims]
    assert sum(isinstance(item, Reservation) for item in found) == 2
    assert sum(isinstance(item, Refusal) for item in found) == 28


@pytest.mark.parametrize("users", [1, 3])
def test_a_user_whom_nobody_knows_yet_is_limited_from_the_first_request(users: int) -> None:
    """U11's neighbour: the first requests of a fresh user; and each user has a limit of its own."""
    world = World(2)
    limits = Limits(requests_per_minute=2)
    for i in range(users):
        assert admitted(world, [(f"user:{i}", limits)], 1, 15) == 2


def test_a_request_is_admitted_to_all_its_limits_or_to_none() -> None:
    """U11's neighbour: what a refused request would have taken elsewhere is not gone."""
    world = World(1)
    book = world.books[0]
    both: list[Subject] = [
        ("tenant:t", Limits(requests_per_minute=10)),
        ("model:m", Limits(requests_per_minute=1)),
    ]
    world.admit(book, both)
    for _ in range(5):
        assert world.refuse(book, both).subject == "model:m"
    world.sync(book)
    assert admitted(world, both[:1], 1, 20) == 9


def test_what_is_reserved_is_gone_before_the_answer_is_there() -> None:
    world = World(1)
    world.admit(world.books[0], tokens_of(100), 60)
    refusal = world.refuse(world.books[0], tokens_of(100), 60)
    assert (refusal.kind, refusal.requested, refusal.remaining) == (Kind.TOKENS, 60, 40)


def test_a_request_that_fits_is_not_refused_for_what_a_sibling_holds_ahead() -> None:
    world = World(3)
    for book in world.books:
        world.admit(book, requests_of(100))
    world.live(2.0)  # By then the siblings are idle and have given back.
    assert admitted(world, requests_of(100), 1, 150) >= 99


# Settlement


def test_what_was_reserved_too_much_is_refunded() -> None:
    world = World(1)
    world.admit(world.books[0], tokens_of(100), 100).settle(40)
    world.admit(world.books[0], tokens_of(100), 60)


def test_what_was_used_too_much_is_charged_and_paid_back() -> None:
    world = World(1)
    book = world.books[0]
    world.admit(book, tokens_of(600), 100).settle(900)
    refusal = world.refuse(book, tokens_of(600), 100)
    # 300 of debt and 100 to come, at 10 a second.
    assert refusal.retry_after_s == pytest.approx(40)
    world.live(40.5)
    world.admit(book, tokens_of(600), 100)


def test_a_debt_at_one_gateway_is_every_gateways() -> None:
    world = World(2)
    world.admit(world.books[0], tokens_of(600), 100).settle(900)
    world.sync(world.books[0])
    assert admitted(world, tokens_of(600), 1, 200) <= lease_size(600, 2)


@pytest.mark.parametrize("end", ["settle", "cancel"])
def test_only_the_first_end_counts(end: str) -> None:
    world = World(1)
    reservation = world.admit(world.books[0], tokens_of(100), 50)
    if end == "settle":
        assert reservation.settle(50)
    else:
        reservation.cancel()
    for _ in range(5):
        assert not reservation.settle(0)
        reservation.cancel()
    left = 50 if end == "settle" else 100
    world.refuse(world.books[0], tokens_of(100), left + 1)
    world.admit(world.books[0], tokens_of(100), left)


def test_a_cancelled_request_counts_as_if_it_had_never_been() -> None:
    world = World(1)
    for _ in range(20):
        world.admit(world.books[0], requests_of(1)).cancel()
    world.admit(world.books[0], requests_of(1)).settle(0)
    world.refuse(world.books[0], requests_of(1))


def test_a_refund_does_not_fill_the_bucket_over_its_edge() -> None:
    world = World(1)
    book = world.books[0]
    reservation = world.admit(book, tokens_of(600), 600)
    world.live(61)
    reservation.settle(0)
    assert admitted(world, tokens_of(600), 100, 30) <= 6 + excess(600, 1) // 100


def test_the_token_error_after_settlement_is_below_one_percent() -> None:
    """Estimates are wrong by half, in both directions; what is charged is what was used."""
    world = World(2)
    limit, used = 60_000, 0
    for i in range(400):
        found = world.reserve(world.books[i % 2], tokens_of(limit), 100 if i % 3 else 200)
        assert isinstance(found, Reservation)
        tokens = 137 + i % 11
        used += tokens
        found.settle(tokens)
    for book in world.books:
        world.sync(book, leaves=True)
    level = world.ledger.level("tenant:t|tokens", world.now_s)
    assert level is not None
    assert limit - level == pytest.approx(used, rel=0.001)


# Leases


def test_a_burst_after_quiet_exceeds_one_bucket_by_at_most_a_slice_a_gateway() -> None:
    world = World(3)
    limit = 240
    for book in world.books:
        for _ in range(5):
            world.admit(book, requests_of(limit)).settle(0)
    world.live(0.9)
    world.live(60)
    assert admitted(world, requests_of(limit), 1, 600) <= limit + excess(limit, 3)


def test_credit_is_given_once_until_it_is_paid_back() -> None:
    world = World(1)
    book = world.books[0]
    limit = 800
    assert admitted(world, requests_of(limit), 1, 2000) <= limit + excess(limit, 1)
    for _ in range(10):  # Idle again and again, at an empty bucket: there is nothing to lend on.
        world.live(2.0)
        got = 0
        while isinstance(book.try_reserve(requests_of(limit), 1, world.now_s), Reservation):
            got += 1
        assert got == 0, "credit at an empty bucket"
        world.reserve(book, requests_of(limit))
        while isinstance(world.reserve(book, requests_of(limit)), Reservation):
            pass


def test_nothing_is_lent_to_a_gateway_that_does_not_know_how_many_there_are() -> None:
    book = Book("g")
    assert book.try_reserve(requests_of(1000), 1, 0.0) is None
    world = World(1)
    assert isinstance(world.books[0].try_reserve(requests_of(1000), 1, world.now_s), Reservation), (
        "in a session it is"
    )


def test_more_gateways_hold_smaller_slices() -> None:
    world = World(1)
    world.admit(world.books[0], requests_of(800))
    world.sync(world.books[0])
    account = world.books[0].accounts.by_key["tenant:t"]
    assert account.requests is not None
    assert account.requests.size == 100
    world.books += [Book("x"), Book("y"), Book("z")]
    world.sync_all()
    world.sync_all()
    assert account.requests.size == 25
    assert account.requests.balance <= 25


def test_an_idle_gateway_gives_back_what_it_holds() -> None:
    world = World(2)
    world.admit(world.books[0], requests_of(800)).cancel()
    world.live(3.0)
    assert world.ledger.level("tenant:t|requests", world.now_s) in (None, 800)
    account = world.books[0].accounts.by_key["tenant:t"]
    assert account.is_empty()


def test_what_a_dead_gateway_held_refills() -> None:
    world = World(2)
    world.admit(world.books[0], requests_of(600))
    world.sync(world.books[0])
    world.books.pop(0)
    world.live(5.0)
    assert admitted(world, requests_of(600), 1, 700) >= 600


# The authority is away


def test_alone_all_gateways_together_admit_the_limit_a_minute() -> None:
    world = World(3)
    for book in world.books:
        world.admit(book, requests_of(120)).settle(0)
    for book in world.books:
        world.lose(book)
    first = admitted(world, requests_of(120), 1, 600)
    assert 110 <= first <= 120 + excess(120, 3)
    for _ in range(60):
        world.turn(1.0)
        for book in world.books:
            world.lose(book)
    assert 110 <= admitted(world, requests_of(120), 1, 600) <= 125


def test_around_the_loss_at_most_one_limit_more_is_admitted() -> None:
    """The worst case: one gateway used it all, and the others did not hear of it."""
    world = World(3)
    for _ in range(130):
        world.reserve(world.books[0], requests_of(120))
    for book in world.books:
        world.lose(book)
    assert admitted(world, requests_of(120), 1, 600) <= 120


def test_alone_a_refund_can_be_used_again() -> None:
    world = World(1)
    book = world.books[0]
    world.admit(book, tokens_of(1000), 10).settle(10)
    world.lose(book)
    for _ in range(7):
        world.admit(book, tokens_of(1000), 700).settle(40)
    world.refuse(book, tokens_of(1000), 740)


def test_what_was_spent_alone_is_told_afterwards() -> None:
    world = World(2)
    for book in world.books:
        world.admit(book, requests_of(100))
        world.lose(book)
    admitted(world, requests_of(100), 1, 300)
    world.sync_all()
    world.sync_all()
    assert admitted(world, requests_of(100), 1, 50) <= lease_size(100, 2)


def test_an_authority_that_began_anew_learns_what_was_spent() -> None:
    world = World(2)
    assert admitted(world, requests_of(100), 1, 200) <= 100 + excess(100, 2)
    world.live(2.0)  # They are idle: there is nothing that they would have to tell by themselves.
    world.restart()
    world.sync_all()
    world.sync_all()
    world.sync_all()
    assert admitted(world, requests_of(100), 1, 200) <= 5


@pytest.mark.parametrize("arrives", [True, False])
def test_a_sync_of_which_nobody_knows_whether_it_arrived_gives_nothing_twice(arrives: bool) -> None:
    world = World(1)
    book = world.books[0]
    reservation = world.admit(book, tokens_of(1000), 1000)
    reservation.settle(500)
    world.lose(book, arrives=arrives)
    world.sync(book)
    world.sync(book)
    assert admitted(world, tokens_of(1000), 100, 20) <= 5


@pytest.mark.parametrize("knows", [False, True])
def test_what_was_given_back_to_an_authority_that_died_is_given_to_the_next(knows: bool) -> None:
    """Whether it died before it was told, or nobody knows whether after."""
    world = World(1)
    book = world.books[0]
    reservation = world.admit(book, tokens_of(1000), 1000)
    world.sync(book)
    reservation.settle(500)
    if knows:
        world.lose(book, arrives=True)
    world.restart()
    for _ in range(3):
        world.sync(book)
    assert admitted(world, tokens_of(1000), 100, 20) == 5


# Change


@pytest.mark.parametrize(("new", "left"), [(50, 0), (100, 40), (200, 140)])
def test_what_is_spent_stays_spent_when_a_limit_changes(new: int, left: int) -> None:
    world = World(1)
    assert admitted(world, requests_of(100), 1, 60) == 60
    world.sync_all()
    found = admitted(world, requests_of(new), 1, 300)
    assert left <= found <= left + lease_size(new, 1)


def test_a_gateway_remembers_a_bounded_number_of_subjects() -> None:
    world = World(1)
    book = Book("small", max_subjects=100)
    world.books = [book]
    world.sync(book)
    limits = Limits(requests_per_minute=1000)
    for i in range(1000):
        world.admit(book, [(f"user:{i}", limits)]).settle(0)
        assert len(book.accounts) <= 101
