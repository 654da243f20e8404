"""One subject at one gateway: its leases, and who waits for more of them."""

from __future__ import annotations

from collections.abc import Iterator

from aibrix_ray.limits.rate_lease import RateLease
from aibrix_ray.limits.slot_lease import SlotLease
from aibrix_ray.limits.subject import Limits


class Claim:
    """A request that waits for the authority's answer."""

    __slots__ = ("accounts", "tokens")

    def __init__(self, tokens: int, accounts: list[Account]) -> None:
        self.tokens = tokens
        self.accounts = accounts


class Account:
    """A subject's leases; a kind that is not limited has none.

    Attributes:
        used_s: when a request last took from it.
        active: whether that is so recent that leases are kept; else they are given back.
        marked: whether the next sync is to speak of it.
        open: requests that hold a reservation.
        claims: requests that wait, first come first.
    """

    __slots__ = (
        "active",
        "claims",
        "key",
        "limits",
        "marked",
        "open",
        "requests",
        "slots",
        "tokens",
        "used_s",
    )

    def __init__(self, key: str, limits: Limits) -> None:
        self.key = key
        self.limits = limits
        self.requests: RateLease | None = None
        self.tokens: RateLease | None = None
        self.slots: SlotLease | None = None
        self.used_s = 0.0
        self.active = False
        self.marked = False
        self.open = 0
        self.claims: dict[Claim, None] = {}

    def fits(self, tokens: int, *, live: bool) -> bool:
        """Return whether a request can be admitted here; `live`: slot leases may be used."""
        requests, tanked, slots = self.requests, self.tokens, self.slots
        return (
            (requests is None or requests.balance >= 1)
            and (tanked is None or tanked.balance >= tokens)
            and (slots is None or (live and slots.in_use < slots.lease))
        )

    def take(self, tokens: int) -> bool:
        """Admit a request; returns whether more should be asked for."""
        low = False
        self.open += 1
        if (lease := self.requests) is not None:
            lease.balance -= 1
            low = lease.balance < lease.low
        if (lease := self.tokens) is not None:
            lease.balance -= tokens
            low = low or lease.balance < lease.low
        if (slots := self.slots) is not None:
            slots.in_use += 1
            low = low or slots.lease - slots.in_use < slots.low
        return low

    def give(self, requests: int, tokens: int) -> None:
        """Take back what a request does not need any more; negative: it used more."""
        self.open -= 1
        if self.requests is not None:
            self.requests.refund(requests)
        if self.tokens is not None:
            self.tokens.refund(tokens)
        if self.slots is not None:
            self.slots.in_use -= 1

    def fits_on_credit(self, tokens: int, *, live: bool) -> bool:
        """Return whether a request can be admitted if credit is used as well."""
        slots = self.slots
        return all(
            amount <= lease.balance + (lease.size if lease.credit else 0)
            for lease, amount in self.amounts(tokens)
        ) and (slots is None or (live and slots.in_use < slots.lease))

    def borrow(self, tokens: int) -> None:
        """Use the credit where a request lacks something."""
        for lease, amount in self.amounts(tokens):
            if lease.balance < amount:
                lease.borrow()

    def amounts(self, tokens: int) -> Iterator[tuple[RateLease, int]]:
        """Yield the rates that a request of so many tokens takes from, and how much."""
        if self.requests is not None:
            yield self.requests, 1
        if self.tokens is not None:
            yield self.tokens, tokens

    def rates(self) -> Iterator[RateLease]:
        """Yield the rate leases."""
        return (lease for lease, _ in self.amounts(0))

    def has_surplus(self) -> bool:
        """Return whether there is something to give back, or a debt to tell."""
        slots = self.slots
        return any(r.back > 0 or r.balance < 0 for r in self.rates()) or (
            slots is not None and slots.lease - slots.in_use > slots.size
        )

    def is_empty(self) -> bool:
        """Return whether forgetting it loses nothing."""
        return (
            not self.open
            and not self.claims
            and not self.marked
            and all(r.balance == r.back == r.owed == 0 for r in self.rates())
            and (self.slots is None or self.slots.lease == self.slots.in_use == 0)
        )
