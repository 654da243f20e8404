"""What a gateway tells the authority and what it makes of the answer, and of there being none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aibrix_ray.limits.account import Account
from aibrix_ray.limits.accounts import Accounts
from aibrix_ray.limits.messages import Grants, RateAsk, SlotAsk, Sync
from aibrix_ray.limits.rate_lease import RateLease
from aibrix_ray.limits.slot_lease import SlotLease

#: Slots that were not renewed for this long are not used any more: sooner than they are reclaimed.
LEASE_S = 4.0
#: Accounts told of in one sync; the others follow in the next.
MAX_BATCH = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """What one sync is about."""

    session: str
    replaces: str
    joins: bool
    leaves: bool
    gateways: int
    accounts: list[Account]
    rates: list[tuple[RateLease, RateAsk, bool]] = field(default_factory=list)
    slots: list[tuple[SlotLease, SlotAsk]] = field(default_factory=list)

    @property
    def sync(self) -> Sync:
        """What to send."""
        return Sync(
            session=self.session,
            gateways=self.gateways,
            joins=self.joins,
            replaces=self.replaces,
            leaves=self.leaves,
            rates=[ask for _, ask, _ in self.rates],
            slots=[ask for _, ask in self.slots],
        )


class Exchange:
    """The state of a gateway's connection to the authority.

    Attributes:
        lost_s: since when the authority does not answer; `None`: it does, or was never asked.
        joined: whether the authority knows us.
        live_until_s: until when slot leases may be used.
    """

    def __init__(self, name: str, accounts: Accounts) -> None:
        self.lost_s: float | None = None
        self.live_until_s = -math.inf
        self.joined = False
        self._name = name
        self._accounts = accounts
        self._session = 0
        self._told_gateways = 0
        self._incarnation = ""

    def compose(self, now_s: float, *, leaves: bool = False) -> Batch:
        """Return what to tell. Follow it with `apply` or with `fail` before the next."""
        if leaves:
            self._accounts.close()
        joins, replaces = not self.joined, self._session_name()
        self._session += joins
        batch = Batch(
            session=self._session_name(),
            replaces=replaces,
            joins=joins,
            leaves=leaves,
            gateways=self._told_gateways,
            accounts=self._next_accounts(joins=joins, everything=leaves),
        )
        for account in batch.accounts:
            self._ask(batch, account, now_s)
        return batch

    def apply(self, batch: Batch, grants: Grants, *, sent_s: float, now_s: float) -> None:
        """Take the authority's answer to a batch that was sent at `sent_s`."""
        if grants.incarnation != self._incarnation:
            self._incarnation = grants.incarnation
            self._accounts.epoch += 1
            for account in self._accounts:
                for lease in account.rates():
                    lease.recover()
        if not grants.known:
            self.joined = False
            self._undo(batch, unheard=True)
            return
        self.joined, self.lost_s = True, None
        self.live_until_s = sent_s + LEASE_S
        for (lease, rate_ask, idle), rate in zip(batch.rates, grants.rates, strict=True):
            lease.apply(
                rate_ask,
                rate,
                sent_s=sent_s,
                now_s=now_s,
                idle=idle,
                epoch=self._accounts.epoch,
            )
        for (slots, slot_ask), slot in zip(batch.slots, grants.slots, strict=True):
            slots.apply(slot_ask, slot, now_s=now_s)
        if grants.settled:
            self._told_gateways = grants.gateways
        if grants.gateways != self._accounts.gateways:
            self._accounts.set_gateways(grants.gateways)
        if batch.joins:
            self._accounts.mark_spent(now_s)

    def fail(self, batch: Batch, now_s: float) -> None:
        """Take note that a batch was not answered."""
        self._undo(batch, unheard=False)
        self.lose(now_s)

    def lose(self, now_s: float) -> None:
        """Take note that the authority is away: from now on each gateway has its fair share."""
        self.joined = False
        if self.lost_s is None:
            self.lost_s = now_s

    def _session_name(self) -> str:
        return f"{self._name}/{self._session}"

    def _next_accounts(self, *, joins: bool, everything: bool) -> list[Account]:
        if joins:
            # The authority is to know every slot that is held before it grants others. Rates are
            # told of once it has said which incarnation it is: see `mark_spent`.
            chosen = [a for a in self._accounts if a.slots and (a.slots.lease or a.slots.in_use)]
            for account in chosen:
                self._accounts.unmark(account)
            return chosen
        most = len(self._accounts) + MAX_BATCH if everything else MAX_BATCH
        return self._accounts.next_marked(most)

    def _ask(self, batch: Batch, account: Account, now_s: float) -> None:
        idle = not account.active
        tokens = [claim.tokens for claim in account.claims]
        for lease in () if batch.joins else account.rates():
            needs = tokens if lease is account.tokens else [1] * len(tokens)
            need, least = sum(needs), min(needs, default=0)
            ask = lease.ask(need, least, idle=idle, now_s=now_s, epoch=self._accounts.epoch)
            batch.rates.append((lease, ask, idle))
        if account.slots is not None:
            live = now_s < self.live_until_s
            batch.slots.append(
                (account.slots, account.slots.ask(len(tokens), idle=idle, live=live))
            )

    def _undo(self, batch: Batch, *, unheard: bool) -> None:
        for lease, ask, _ in batch.rates:
            lease.undo(ask, unheard=unheard)
        for slots, _ in batch.slots:
            slots.wake()
        self._accounts.mark_again(batch.accounts)
