"""Gateways and their authority in one room; a test turns the clock and the network by hand."""

from __future__ import annotations

from aibrix_ray.limits import Batch, Book, Grants, Ledger, Refusal, Reservation, Subject


class World:
    """`ledger` may be replaced by another, which is what a restart of the authority is."""

    def __init__(self, gateways: int, *, now_s: float = 1000.0, settled: bool = True) -> None:
        self.now_s = now_s
        self.incarnations = 1
        self.ledger = Ledger("1", now_s, settled=settled)
        self.books = [Book(f"g{i}") for i in range(gateways)]
        for _ in range(2):  # The second time each hears how many they are.
            self.sync_all()

    def restart(self) -> None:
        """Let the authority die and come back knowing nothing."""
        self.incarnations += 1
        self.ledger = Ledger(str(self.incarnations), self.now_s)

    def send(self, book: Book, *, leaves: bool = False) -> tuple[Batch, Grants, float]:
        """Let a sync arrive, and return it with an answer that is still under way."""
        batch = book.exchange.compose(self.now_s, leaves=leaves)
        return batch, self.ledger.sync(batch.sync, self.now_s), self.now_s

    def sync(self, book: Book, *, leaves: bool = False) -> None:
        batch, grants, sent_s = self.send(book, leaves=leaves)
        book.exchange.apply(batch, grants, sent_s=sent_s, now_s=self.now_s)

    def sync_all(self) -> None:
        for book in self.books:
            self.sync(book)

    def lose(self, book: Book, *, arrives: bool = False) -> None:
        """Let a sync get lost on its way, or (`arrives`) its answer."""
        batch = book.exchange.compose(self.now_s)
        if arrives:
            self.ledger.sync(batch.sync, self.now_s)
        book.exchange.fail(batch, self.now_s)

    def turn(self, seconds: float) -> None:
        """Let time pass without a word."""
        self.now_s += seconds

    def live(self, seconds: float) -> None:
        """Let time pass as gateways spend it, with heartbeats and sweeps."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(until_s, self.now_s + 0.5)
            for book in self.books:
                book.accounts.sweep(self.now_s)
            self.sync_all()

    def reserve(
        self, book: Book, subjects: list[Subject], tokens: int = 1
    ) -> Reservation | Refusal | None:
        """Ask as a gateway does; `None`: undecided after an exchange with the authority."""
        found = book.try_reserve(subjects, tokens, self.now_s)
        if found is not None:
            return found
        claim = book.claim(subjects, tokens, self.now_s)
        for _ in range(3):
            self.sync(book)
            found = book.try_claim(claim, self.now_s)
            if found is not None:
                return found
        book.end_claim(claim)
        return None

    def admit(self, book: Book, subjects: list[Subject], tokens: int = 1) -> Reservation:
        found = self.reserve(book, subjects, tokens)
        assert isinstance(found, Reservation), found
        return found

    def refuse(self, book: Book, subjects: list[Subject], tokens: int = 1) -> Refusal:
        found = self.reserve(book, subjects, tokens)
        assert isinstance(found, Refusal), found
        return found
