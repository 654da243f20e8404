"""What an admitted request holds, until it is settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aibrix_ray.limits.headers import Headers, rate_headers
from aibrix_ray.limits.subject import Kind

if TYPE_CHECKING:
    from aibrix_ray.limits.account import Account
    from aibrix_ray.limits.book import Book
    from aibrix_ray.limits.rate_lease import RateLease


_Left = tuple[float, int]


class Reservation:
    """One request's part of every limit of its subjects. Settle or cancel it, on every path.

    Only the first of `settle` and `cancel` counts, so a `finally` may always cancel.
    """

    __slots__ = ("_accounts", "_book", "_is_open", "_now_s", "tokens")

    def __init__(self, book: Book, accounts: list[Account], tokens: int, now_s: float) -> None:
        self.tokens = tokens
        self._book = book
        self._accounts = accounts
        self._now_s = now_s
        self._is_open = True

    def settle(self, tokens: int) -> bool:
        """End with what was really used: the difference is refunded, or charged as a debt.

        Returns whether it was open.
        """
        was_open = self._is_open
        if was_open:
            self._is_open = False
            self._book.release(self._accounts, 0, self.tokens - tokens)
        return was_open

    def cancel(self) -> None:
        """End as if the request had never been."""
        if self._is_open:
            self._is_open = False
            self._book.release(self._accounts, 1, self.tokens)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The `x-ratelimit-*` headers of the tightest subject, as of the admission."""
        return list(tightest(self._accounts, self._now_s))


def tightest(accounts: list[Account], now_s: float) -> Headers:
    """Return the headers of the subjects that have least left of requests and of tokens."""
    requests = tokens = None
    for account in accounts:
        requests = _tighter(requests, account.requests, now_s)
        tokens = _tighter(tokens, account.tokens, now_s)
    return _headers(Kind.REQUESTS, requests) + _headers(Kind.TOKENS, tokens)


def _tighter(best: _Left | None, lease: RateLease | None, now_s: float) -> _Left | None:
    if lease is None:
        return best
    left = lease.remaining(now_s)
    return (left, lease.limit) if best is None or left < best[0] else best


def _headers(kind: Kind, left: _Left | None) -> Headers:
    if left is None:
        return ()
    remaining, limit = left
    return rate_headers(kind, limit, min(limit, max(0, int(remaining))))
