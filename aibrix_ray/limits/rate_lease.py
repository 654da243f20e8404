"""A gateway's part of one bucket: what it may spend without asking."""

from __future__ import annotations

import math

from aibrix_ray.limits.messages import RateAsk, RateGrant
from aibrix_ray.limits.subject import MINUTE_S, lease_size

#: Below any balance: nothing is asked for ahead.
_NEVER = -math.inf
#: What the authority said of a bucket is good enough to refuse by for this long. A refusal for want
#: of tokens that another gateway has just given back would be a false one.
FRESH_S = 0.25


class RateLease:
    """What is left of what the authority granted, and what is known of the rest.

    Attributes:
        balance: what may be spent. Negative after a settlement that found more used than reserved;
            the next sync moves the debt to the authority. Never more than `size`, but for what was
            granted to requests that wait, and while the authority is away.
        back: what requests gave back beyond that. It belongs to the bucket, which has refilled
            meanwhile and may overflow: spending it here would admit more than the limit.
        owed: what was spent, or is held, beyond any grant: the next sync charges it.
        size: how much is held ahead of requests.
        low: more is asked for when the balance is below it.
        credit: whether `size` may be spent before the authority has answered. True at first contact
            and after an idle time that began at a well-filled bucket.
        level: what the bucket held at `level_s`, when the authority was last asked.
        epoch: which incarnation of the authority told it, as the book counts them.
    """

    __slots__ = (
        "_heard_s",
        "_minted_s",
        "_unsure",
        "back",
        "balance",
        "credit",
        "epoch",
        "key",
        "level",
        "level_s",
        "limit",
        "low",
        "owed",
        "size",
    )

    def __init__(self, key: str, limit: int, gateways: int, epoch: int) -> None:
        self.key = key
        self.balance = 0.0
        self.back = 0.0
        self.owed = 0.0
        self.credit = True
        self.level = float(limit)
        self.level_s = -math.inf
        self.epoch = epoch
        self._heard_s = -math.inf
        self._minted_s = -math.inf
        self._unsure = 0.0
        self.resize(limit, gateways)

    def resize(self, limit: int, gateways: int) -> None:
        """Take another limit or another number of gateways."""
        self.limit = limit
        self.size = lease_size(limit, gateways)
        self.low = self.size / 2

    def wake(self) -> None:
        """Ask ahead again, after a time in which the bucket was dry."""
        self.low = self.size / 2

    def level_at(self, now_s: float) -> float:
        """Return what the bucket holds if nobody else spends; full if the authority never told."""
        refilled = self.level + (now_s - self.level_s) * self.limit / MINUTE_S
        return min(float(self.limit), refilled)

    def remaining(self, now_s: float) -> float:
        """Return what this gateway believes is left, here and at the authority."""
        return self.balance + self.back - self.owed + self.level_at(now_s)

    def refund(self, amount: float) -> None:
        """Take what a request does not need any more; negative: it used more than it reserved."""
        balance = self.balance + amount
        if balance > self.size:  # As `trim` does; this is the hot path.
            self.back += balance - self.size
            balance = self.size
        self.balance = balance

    def trim(self) -> None:
        """Put aside, for the authority, what is more than may be held."""
        over = self.balance - self.size
        if over > 0:
            self.back += over
            self.balance -= over

    def borrow(self) -> None:
        """Use the credit."""
        self.balance += self.size
        self.owed += self.size
        self.credit = False

    def wait_s(self, amount: float, now_s: float) -> float | None:
        """Return how long `amount` will be missing; `None` if the authority has to be asked."""
        missing = amount - self.remaining(now_s)
        if missing <= 0 or now_s - self._heard_s > FRESH_S:
            return None
        return missing * MINUTE_S / self.limit

    def ask(self, need: int, least: int, *, idle: bool, now_s: float, epoch: int) -> RateAsk:
        """Return what to tell the authority, as if it were told now; `undo` if it was not."""
        if self.balance < 0:
            self.owed -= self.balance
            self.balance = 0.0
        target, level = 0 if idle else self.size, self.level_at(now_s)
        surplus = max(0.0, self.balance - need - target)
        self.balance -= surplus
        surplus += self.back
        forgiven = min(surplus, self.owed)
        ask = RateAsk(
            key=self.key,
            limit=self.limit,
            level=math.inf if self.epoch == epoch or level >= self.limit else level,
            charge=self.owed - forgiven,
            give_back=surplus - forgiven,
            need=max(0, math.ceil(need - self.balance)),
            least=max(0, math.ceil(least - self.balance)),
            ahead=max(0, int(target - max(0.0, self.balance - need))),
        )
        self.back = self.owed = 0.0
        self.low = _NEVER
        return ask

    def undo(self, ask: RateAsk, *, unheard: bool) -> None:
        """Take back what could not be told.

        Unless it is certain that it was `unheard`, what was given back counts as such: it is
        missing for a while, where twice given back would admit too much. See `recover`.
        """
        self.owed += ask.charge
        if unheard:
            self.back += ask.give_back
        else:
            self._unsure += ask.give_back
        self.wake()

    def recover(self) -> None:
        """Take back what the authority may have been given, now that it began anew.

        It will hear from us what the bucket held before that.
        """
        self.back += self._unsure
        self._unsure = 0.0

    def apply(
        self,
        ask: RateAsk,
        grant: RateGrant,
        *,
        sent_s: float,
        now_s: float,
        idle: bool,
        epoch: int,
    ) -> None:
        """Take the authority's answer."""
        self.balance += grant.granted
        self.level, self.level_s, self.epoch = grant.level, sent_s, epoch
        self._heard_s = now_s
        self._unsure = 0.0
        if grant.granted >= ask.need + ask.ahead:
            self.wake()
        # Only after nothing was held: what is held and what is lent must not add up to more than
        # a slice. Only at a well-filled bucket: then any earlier credit has been paid back.
        self.credit = idle and self.balance <= 0 and 2 * grant.level >= self.limit

    def share(self, gateways: int) -> float:
        """Return how much of the limit is this gateway's own while the authority is away."""
        return max(1.0, self.limit / gateways)

    def mint(self, now_s: float, lost_s: float, gateways: int) -> None:
        """While the authority is away since `lost_s`: refill our own share of the bucket.

        It begins with our part of what was left, as far as we know, less what we owe already. What
        is minted is owed, at most one share of it; what requests gave back was paid for.
        """
        minted = 0.0
        if self._minted_s < lost_s:
            minted = max(0.0, self.level_at(lost_s) / gateways - self.owed)
            self._minted_s = lost_s
        minted += max(0.0, now_s - self._minted_s) * self.limit / MINUTE_S / gateways
        self._minted_s = now_s
        share = self.share(gateways)
        taken = min(self.back + minted, max(0.0, share - self.balance))
        from_back = min(self.back, taken)
        self.back -= from_back
        self.balance += taken
        self.owed = min(self.owed + taken - from_back, max(self.owed, share))
