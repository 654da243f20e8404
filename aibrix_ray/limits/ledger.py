"""What the authority knows: every subject's buckets, and which gateway holds which slots.

State is in memory alone. A ledger that begins anew has full buckets, until the gateways tell in
their next syncs what they last knew of them; slots are granted again once every gateway has told
what it holds, or after `RECLAIM_S`. One that was itself asleep takes nobody for dead because of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from aibrix_ray.limits.messages import Grants, RateAsk, RateGrant, SlotAsk, SlotGrant, Sync
from aibrix_ray.limits.subject import MINUTE_S

#: A gateway that was not heard for this long is dead: its slots are granted to others.
RECLAIM_S = 5.0
#: Without a word from any gateway for this long it is the ledger that did not listen.
DEAF_S = 2.0
#: Buckets kept; past it the one that was used least recently is forgotten and begins full again.
MAX_BUCKETS = 200_000


@dataclass(slots=True)
class Bucket:
    """A token bucket; its level is negative while what was overdrawn is paid back.

    `net` is what came into it, less what was taken, in this incarnation, refill aside.
    """

    limit: int
    level: float
    filled_s: float
    net: float = 0.0

    def refill(self, limit: int, now_s: float) -> None:
        """Bring the level up to now; what is spent stays spent when the limit changes."""
        self.level += limit - self.limit
        self.limit = limit
        passed_s = max(0.0, now_s - self.filled_s)
        self.level = min(limit, self.level + passed_s * limit / MINUTE_S)
        self.filled_s = now_s


@dataclass(slots=True)
class _Session:
    """A gateway; `gateways` is how many an earlier incarnation told it of, 0: it is new."""

    joined_s: float
    seen_s: float
    gateways: int
    leases: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Answers syncs, one at a time; `now_s` never goes back."""

    def __init__(
        self,
        incarnation: str,
        now_s: float,
        *,
        settled: bool = False,
        max_buckets: int = MAX_BUCKETS,
    ) -> None:
        """Begin; `settled`: it is certain that no gateway holds slots from before."""
        self.incarnation = incarnation
        self._began_s = self._heard_s = now_s
        self._max_buckets = max_buckets
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._leased: dict[str, int] = {}
        self._settled = settled

    @property
    def buckets(self) -> int:
        """How many buckets are held; one that is full may be forgotten."""
        return len(self._buckets)

    @property
    def sessions(self) -> int:
        """How many gateways are known."""
        return len(self._sessions)

    def level(self, key: str, now_s: float) -> float | None:
        """Return what a bucket holds; `None` if it is not known, which means that it is full."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return None
        bucket.refill(bucket.limit, now_s)
        return bucket.level

    def leased(self, key: str) -> int:
        """Return how many slots of a cap all gateways hold."""
        return self._leased.get(key, 0)

    def sync(self, sync: Sync, now_s: float) -> Grants:
        """Take what a gateway says, and grant what it asks for."""
        self._reap(now_s)
        if sync.joins:
            self._drop(sync.replaces)
            self._drop(sync.session)
            self._sessions[sync.session] = _Session(now_s, now_s, sync.gateways)
        session = self._sessions.get(sync.session)
        if session is None:
            return Grants(self.incarnation, known=False)
        session.seen_s = now_s
        self._sessions.move_to_end(sync.session)
        settled = self._is_settled(now_s)
        gateways = len(self._sessions) if settled else max(len(self._sessions), self._expected())
        rates = [self._rate(ask, gateways, now_s) for ask in sync.rates]
        # Whoever may hold slots is known to all, so that all can say how many must tell what they
        # hold, should we begin anew. The first session is the one that was not seen for longest.
        grants = settled and next(iter(self._sessions.values())).seen_s >= session.joined_s
        slots = [self._slot(ask, session, gateways, grants=grants) for ask in sync.slots]
        if sync.leaves:
            self._drop(sync.session)
        self._forget(2 * len(rates), now_s)
        return Grants(self.incarnation, True, gateways, settled, rates, slots)

    def _rate(self, ask: RateAsk, gateways: int, now_s: float) -> RateGrant:
        bucket = self._buckets.get(ask.key)
        if bucket is None:
            bucket = self._buckets[ask.key] = Bucket(ask.limit, ask.limit, now_s)
        else:
            self._buckets.move_to_end(ask.key)
        bucket.refill(ask.limit, now_s)
        # What an earlier incarnation told does not know of what was told to this one.
        level = min(bucket.level, ask.level + bucket.net)
        level = min(float(ask.limit), level - ask.charge + ask.give_back)
        # Whole units: fractions at several gateways would add up to requests that nobody can admit.
        room = max(0, math.floor(level))
        granted = min(ask.need, room) if room >= ask.least else 0
        # What is scarce is not held ahead by one gateway while another refuses for lack of it.
        granted += min(ask.ahead, (room - granted) // (2 * gateways))
        bucket.level = level - granted
        bucket.net += ask.give_back - ask.charge - granted
        return RateGrant(granted, bucket.level)

    def _slot(self, ask: SlotAsk, session: _Session, gateways: int, *, grants: bool) -> SlotGrant:
        others = self._leased.get(ask.key, 0) - session.leases.get(ask.key, 0)
        room = max(0, ask.cap - others - ask.hold) if grants else 0
        granted = min(ask.need, room)
        granted += min(ask.ahead, (room - granted) // (2 * gateways))
        self._lease(session, ask.key, ask.hold + granted)
        return SlotGrant(ask.hold + granted, room - granted if grants else -1)

    def _lease(self, session: _Session, key: str, slots: int) -> None:
        total = self._leased.get(key, 0) - session.leases.pop(key, 0) + slots
        if slots:
            session.leases[key] = slots
        if total:
            self._leased[key] = total
        else:
            self._leased.pop(key, None)

    def _is_settled(self, now_s: float) -> bool:
        # Sessions of before our own beginning may hold slots, and use them for less than RECLAIM_S.
        # How many there were, only those of them can tell; a new gateway knows of none.
        if not self._settled:
            old = sum(session.gateways > 0 for session in self._sessions.values())
            waited = now_s - self._began_s >= RECLAIM_S
            self._settled = waited or 0 < self._expected() <= old
        return self._settled

    def _expected(self) -> int:
        return max(session.gateways for session in self._sessions.values())

    def _reap(self, now_s: float) -> None:
        deaf = now_s - self._heard_s > DEAF_S
        self._heard_s = now_s
        if deaf:
            self._began_s = now_s
            for session in self._sessions.values():
                session.seen_s = now_s
        while self._sessions:
            name, session = next(iter(self._sessions.items()))
            if now_s - session.seen_s < RECLAIM_S:
                break
            self._drop(name)

    def _drop(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            for key in list(session.leases):
                self._lease(session, key, 0)

    def _forget(self, looks: int, now_s: float) -> None:
        for _ in range(min(looks, len(self._buckets))):
            key, bucket = next(iter(self._buckets.items()))
            bucket.refill(bucket.limit, now_s)
            if bucket.level >= bucket.limit or len(self._buckets) > self._max_buckets:
                del self._buckets[key]
            else:
                self._buckets.move_to_end(key)
