"""What holds whatever gateways, clients and the network do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aibrix_ray.limits import Book, Limits, Reservation, Subject, excess, lease_size
from tests.limits.world import World

GATEWAYS = st.integers(0, 2)
MANY = st.integers(0, 5)


@dataclass
class _Open:
    book: Book
    reservation: Reservation
    tokens: int
    started_s: float = 0.0


@dataclass
class _Flow:
    """What was taken (positive) and given back (negative) over time."""

    events: list[tuple[float, int]] = field(default_factory=list)

    def worst(self, per_s: float) -> float:
        """Return the largest sum in any window beyond what refills in it."""
        worst = best = 0.0
        for (before_s, _), (now_s, amount) in pairwise([(0.0, 0), *self.events]):
            best = max(0.0, best - (now_s - before_s) * per_s) + amount
            worst = max(worst, best)
        return worst


class Rates(RuleBasedStateMachine):
    """Requests and tokens a minute over three gateways, with losses on the network.

    What a request gives back is told at once, as it is within 50 ms; until then it may find room in
    the bucket that was not there when it was given back.
    """

    REQUESTS, TOKENS = 60, 600

    @initialize()
    def begin(self) -> None:
        self.world = World(3)
        limits = Limits(requests_per_minute=self.REQUESTS, tokens_per_minute=self.TOKENS)
        self.subjects: list[Subject] = [("tenant:t", limits)]
        self.open: list[_Open] = []
        self.requests, self.tokens = _Flow(), _Flow()

    @rule(gateway=GATEWAYS, tokens=st.integers(1, 200), times=st.integers(1, 30))
    def burst(self, gateway: int, tokens: int, times: int) -> None:
        for _ in range(times):
            self._take(gateway, tokens, self.world.reserve)

    @rule(gateway=GATEWAYS, tokens=st.integers(1, 20), times=st.integers(1, 30))
    def burst_on_what_is_held(self, gateway: int, tokens: int, times: int) -> None:
        for _ in range(times):
            self._take(gateway, tokens, lambda b, s, n: b.try_reserve(s, n, self.world.now_s))

    def _take(self, gateway: int, tokens: int, reserve: Callable[..., object]) -> None:
        book = self.world.books[gateway]
        found = reserve(book, self.subjects, tokens)
        if isinstance(found, Reservation):
            self.open.append(_Open(book, found, tokens))
            self.requests.events.append((self.world.now_s, 1))
            self.tokens.events.append((self.world.now_s, tokens))

    @rule(share=st.floats(0, 1), index=st.integers(0, 50))
    def settle(self, share: float, index: int) -> None:
        if self.open:
            ended = self.open.pop(index % len(self.open))
            used = int(ended.tokens * share)
            ended.reservation.settle(used)
            self.world.sync(ended.book)
            self.tokens.events.append((self.world.now_s, used - ended.tokens))

    @rule(index=st.integers(0, 50))
    def cancel(self, index: int) -> None:
        if self.open:
            ended = self.open.pop(index % len(self.open))
            ended.reservation.cancel()
            self.world.sync(ended.book)
            self.requests.events.append((self.world.now_s, -1))
            self.tokens.events.append((self.world.now_s, -ended.tokens))

    @rule(seconds=st.floats(0.01, 30))
    def live(self, seconds: float) -> None:
        self.world.live(seconds)

    @rule(gateway=GATEWAYS)
    def sync(self, gateway: int) -> None:
        self.world.sync(self.world.books[gateway])

    @rule(gateway=GATEWAYS)
    def the_answer_gets_lost(self, gateway: int) -> None:
        self.world.lose(self.world.books[gateway], arrives=True)
        self.world.sync(self.world.books[gateway])

    @invariant()
    def no_window_has_more_than_the_limit_and_a_slice_a_gateway(self) -> None:
        for flow, limit in ((self.requests, self.REQUESTS), (self.tokens, self.TOKENS)):
            assert flow.worst(limit / 60) <= limit + excess(limit, 3) + 1e-6

    @invariant()
    def no_gateway_holds_more_than_half_a_slice_ahead(self) -> None:
        for book in self.world.books:
            for account in book.accounts:
                for lease in account.rates():
                    assert lease.balance <= lease_size(lease.limit, 3)
                    assert 2 * lease.size <= lease.limit / (4 * 3)


class Slots(RuleBasedStateMachine):
    """A concurrency cap over gateways that come, are cut off, die, and lose their authority."""

    CAP = 5

    @initialize()
    def begin(self) -> None:
        self.world = World(3)
        self.subjects: list[Subject] = [("tenant:t", Limits(max_concurrent=self.CAP))]
        self.open: list[_Open] = []
        self.names = 3

    @rule(gateway=MANY, times=st.integers(1, 6))
    def burst(self, gateway: int, times: int) -> None:
        book = self._book(gateway)
        for _ in range(times):
            found = self.world.reserve(book, self.subjects)
            if isinstance(found, Reservation):
                self.open.append(_Open(book, found, 1, self.world.now_s))

    @rule(gateway=MANY, times=st.integers(1, 6))
    def burst_on_what_is_held(self, gateway: int, times: int) -> None:
        book = self._book(gateway)
        for _ in range(times):
            found = book.try_reserve(self.subjects, 1, self.world.now_s)
            if isinstance(found, Reservation):
                self.open.append(_Open(book, found, 1, self.world.now_s))

    def _book(self, gateway: int) -> Book:
        return self.world.books[gateway % len(self.world.books)]

    @rule(index=st.integers(0, 50))
    def end(self, index: int) -> None:
        if self.open:
            self.open.pop(index % len(self.open)).reservation.settle(0)

    @rule(seconds=st.floats(0.01, 12))
    def live(self, seconds: float) -> None:
        self.world.live(seconds)

    @rule(gateway=MANY, arrives=st.booleans())
    def a_sync_gets_lost(self, gateway: int, arrives: bool) -> None:
        self.world.lose(self._book(gateway), arrives=arrives)

    @rule(gateway=MANY, seconds=st.floats(1, 12))
    def a_gateway_is_cut_off(self, gateway: int, seconds: float) -> None:
        """Its requests end in the time; see docs/limits.md for those that do not."""
        alone = self._book(gateway)
        until_s = self.world.now_s + seconds
        while self.world.now_s < until_s:
            self.world.turn(0.5)
            self.world.lose(alone)
            self.burst_on_what_is_held(gateway, 1)
            self.open = [o for o in self.open if o.book is not alone or self._ends_early(o)]
            for book in self.world.books:
                if book is not alone:
                    self.world.sync(book)
            self.the_cap_holds()

    def _ends_early(self, request: _Open) -> bool:
        """Keep a request for half a second; then end it and return false."""
        if self.world.now_s - request.started_s < 0.5:
            return True
        request.reservation.settle(0)
        return False

    @rule(gateway=MANY)
    def a_gateway_dies(self, gateway: int) -> None:
        self.names += 1
        books = self.world.books
        self.open = [o for o in self.open if o.book is not books[gateway % len(books)]]
        books[gateway % len(books)] = Book(f"g{self.names}")

    @rule()
    def a_gateway_comes(self) -> None:
        if len(self.world.books) < 6:
            self.names += 1
            self.world.books.append(Book(f"g{self.names}"))

    @rule(seconds=st.floats(0, 3))
    def the_authority_restarts(self, seconds: float) -> None:
        self.world.turn(seconds)
        self.world.restart()

    @rule(seconds=st.floats(0, 20))
    def the_authority_sleeps(self, seconds: float) -> None:
        until_s = self.world.now_s + seconds
        while self.world.now_s < until_s:
            self.world.turn(1.0)
            for book in self.world.books:
                self.world.lose(book)

    @invariant()
    def the_cap_holds(self) -> None:
        if hasattr(self, "open"):
            assert len(self.open) <= self.CAP


Rates.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
Slots.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestRates = Rates.TestCase
TestSlots = Slots.TestCase


@given(limit=st.integers(1, 10**9), gateways=st.integers(1, 1000))
def test_a_slice_is_at_most_the_limit_by_four_times_the_gateways(limit: int, gateways: int) -> None:
    assert 2 * lease_size(limit, gateways) <= limit / (4 * gateways)
    assert excess(limit, gateways) <= limit / 4
