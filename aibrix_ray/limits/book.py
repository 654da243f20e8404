"""A gateway's book of limits: admits what its leases cover, refuses what is known not to fit.

Knows no authority, no clock and no event loop: `exchange.compose` says what to tell the authority,
`exchange.apply` takes its answer, and `on_mark(urgent)` is called when there is something to tell.
Nothing here must survive the gateway: what it held of rates refills, its slots are reclaimed after
`RECLAIM_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from aibrix_ray.limits.account import Account, Claim
from aibrix_ray.limits.accounts import MAX_SUBJECTS, Accounts
from aibrix_ray.limits.exchange import Exchange
from aibrix_ray.limits.rate_lease import RateLease
from aibrix_ray.limits.refusal import Refusal
from aibrix_ray.limits.reservation import Reservation, tightest
from aibrix_ray.limits.subject import MINUTE_S, Kind, Subject

#: A slot frees whenever a request ends, which nobody can foretell.
SLOT_RETRY_S = 1.0
#: When to come back if the authority was too slow to say.
LATE_RETRY_S = 1.0


class Book:
    """The limits of one gateway; `name` is unique among gateways, and new after a restart."""

    def __init__(
        self,
        name: str,
        *,
        gateways: int = 1,
        on_mark: Callable[[bool], None] = lambda urgent: None,
        max_subjects: int = MAX_SUBJECTS,
    ) -> None:
        self.accounts = Accounts(gateways=gateways, on_mark=on_mark, max_subjects=max_subjects)
        self.exchange = Exchange(name, self.accounts)

    def try_reserve(
        self, subjects: Sequence[Subject], tokens: int, now_s: float
    ) -> Reservation | Refusal | None:
        """Admit a request to every limit of its subjects or to none.

        Returns `None` if the authority has to be asked: `claim` it then. `tokens` is what the
        request is expected to use, prompt and answer together.
        """
        if self.exchange.lost_s is not None:
            return self._decide_alone(self._find(subjects), tokens, now_s)
        live = now_s < self.exchange.live_until_s
        by_key = self.accounts.by_key
        found = []
        for key, limits in subjects:
            account = by_key.get(key)
            if (
                account is None
                or account.limits is not limits
                or account.claims
                or not account.fits(tokens, live=live)
            ):
                return self._decide(self._find(subjects), tokens, now_s)
            found.append(account)
        return self._admit(found, tokens, now_s)

    def claim(self, subjects: Sequence[Subject], tokens: int, now_s: float) -> Claim:
        """Queue a request that must wait; what it lacks is asked for in the next sync."""
        accounts = self._find(subjects)
        claim = Claim(tokens, accounts)
        for account in accounts:
            account.claims[claim] = None
            self.accounts.touch(account, now_s)
            self.accounts.mark(account, urgent=True)
        return claim

    def try_claim(self, claim: Claim, now_s: float) -> Reservation | Refusal | None:
        """Try a queued request again; it stays queued, and is asked for, while this is `None`."""
        accounts, tokens = claim.accounts, claim.tokens
        live = now_s < self.exchange.live_until_s
        result: Reservation | Refusal | None
        if self.exchange.lost_s is not None:
            result = self._decide_alone(accounts, tokens, now_s)
        elif all(account.fits(tokens, live=live) for account in accounts):
            result = self._admit(accounts, tokens, now_s)
        else:
            result = self._refuse(accounts, tokens, now_s)
        if result is not None:
            self.end_claim(claim)
        else:
            for account in accounts:
                self.accounts.mark(account, urgent=True)
        return result

    def end_claim(self, claim: Claim) -> None:
        """Take a request out of the queue."""
        for account in claim.accounts:
            account.claims.pop(claim, None)
            if account.claims:
                continue
            for lease in account.rates():
                lease.trim()  # What was granted for a request that could not use it.
            if account.has_surplus():
                self.accounts.mark(account)

    def late(self, claim: Claim, now_s: float) -> Refusal:
        """Return the refusal of a queued request for which the authority answered too late."""
        live = now_s < self.exchange.live_until_s
        worst = _Worst(claim.tokens)
        for account in claim.accounts:
            for lease, amount in account.amounts(claim.tokens):
                if lease.balance < amount:
                    worst.add(account, lease, LATE_RETRY_S)
            slots = account.slots
            if slots is not None and not (live and slots.in_use < slots.lease):
                worst.add(account, None, LATE_RETRY_S)
        refusal = worst.refusal(claim.accounts, now_s, unsure=True)
        assert refusal is not None, "a claim that lacks nothing was not tried again"
        return refusal

    def release(self, accounts: Iterable[Account], requests: int, tokens: int) -> None:
        """Give back what a request does not need any more; negative: it used more."""
        for account in accounts:
            account.give(requests, tokens)
            slots = account.slots
            if account.claims:
                self.accounts.mark(account, urgent=True)
            elif account.has_surplus():
                # Where no slot is kept ahead, the freed one may be what another gateway waits for.
                self.accounts.mark(account, urgent=slots is not None and not slots.size)

    def _find(self, subjects: Sequence[Subject]) -> list[Account]:
        return [self.accounts.get(key, limits) for key, limits in subjects]

    def _admit(self, accounts: list[Account], tokens: int, now_s: float) -> Reservation:
        for account in accounts:
            low = account.take(tokens)
            self.accounts.touch(account, now_s)
            if low:
                self.accounts.mark(account)
        return Reservation(self, accounts, tokens, now_s)

    def _decide(
        self, accounts: list[Account], tokens: int, now_s: float
    ) -> Reservation | Refusal | None:
        live = now_s < self.exchange.live_until_s
        # Without a session the number of gateways is a guess, and so is the size of the credit.
        if (
            self.exchange.joined
            and not any(account.claims for account in accounts)
            and all(account.fits_on_credit(tokens, live=live) for account in accounts)
        ):
            for account in accounts:
                account.borrow(tokens)
                self.accounts.mark(account)
            return self._admit(accounts, tokens, now_s)
        return self._refuse(accounts, tokens, now_s)

    def _refuse(self, accounts: list[Account], tokens: int, now_s: float) -> Refusal | None:
        """Return the refusal that lasts longest of those that are certain."""
        worst = _Worst(tokens)
        live = now_s < self.exchange.live_until_s
        for account in accounts:
            for lease, amount in account.amounts(tokens):
                if amount > lease.limit:
                    return worst.never(account, lease)
                if lease.balance < amount:
                    wait_s = lease.wait_s(amount, now_s)
                    if wait_s is not None:
                        worst.add(account, lease, wait_s)
            slots = account.slots
            if slots and live and slots.in_use >= slots.lease and slots.is_taken(now_s):
                worst.add(account, None, SLOT_RETRY_S)
        return worst.refusal(accounts, now_s)

    def _decide_alone(
        self, accounts: list[Account], tokens: int, now_s: float
    ) -> Reservation | Refusal:
        """Decide while the authority is away.

        Each gateway has its fair share of each rate. Of slots it has those that it leased, until
        the lease ends: whatever the authority does after that, a cap is not exceeded by us.
        """
        exchange, gateways = self.exchange, self.accounts.gateways
        lost_s = now_s if exchange.lost_s is None else exchange.lost_s
        live = now_s < exchange.live_until_s
        worst = _Worst(tokens)
        for account in accounts:
            for lease, amount in account.amounts(tokens):
                if amount > lease.limit:
                    return worst.never(account, lease)
                lease.mint(now_s, lost_s, gateways)
                # More than a share at once leaves a debt; else it could not pass for the time.
                missing = min(amount, lease.share(gateways)) - lease.balance
                if missing > 0:
                    worst.add(account, lease, missing * MINUTE_S * gateways / lease.limit)
            slots = account.slots
            if slots is not None and not (live and slots.in_use < slots.lease):
                worst.add(account, None, SLOT_RETRY_S)
        return worst.refusal(accounts, now_s) or self._admit(accounts, tokens, now_s)


class _Worst:
    """Of the limits that stand in a request's way, the one that does so longest."""

    __slots__ = ("_account", "_lease", "_tokens", "_wait_s")

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._account: Account | None = None
        self._lease: RateLease | None = None
        self._wait_s = 0.0

    def add(self, account: Account, lease: RateLease | None, wait_s: float) -> None:
        """Take note of a limit; no lease: it is the concurrency cap."""
        if self._account is None or wait_s > self._wait_s:
            self._account, self._lease, self._wait_s = account, lease, wait_s

    def never(self, account: Account, lease: RateLease) -> Refusal:
        """Return the refusal of a request that is larger than a limit."""
        return Refusal(
            kind=Kind.TOKENS,
            subject=account.key,
            limit=lease.limit,
            requested=self._tokens,
            remaining=lease.limit,
            retry_after_s=0.0,
            never=True,
        )

    def refusal(
        self, accounts: list[Account], now_s: float, *, unsure: bool = False
    ) -> Refusal | None:
        """Return the refusal; `None` if nothing stands in the way."""
        account, lease = self._account, self._lease
        if account is None:
            return None
        kind, requested, remaining = Kind.CONCURRENT, 1, 0
        limit = account.slots.cap if account.slots else 0
        if lease is not None:
            limit, remaining = lease.limit, max(0, int(lease.remaining(now_s)))
            kind = Kind.REQUESTS
            if lease is account.tokens:
                kind, requested = Kind.TOKENS, self._tokens
        headers = tightest(accounts, now_s)
        return Refusal(
            kind, account.key, limit, requested, remaining, self._wait_s, False, unsure, headers
        )
