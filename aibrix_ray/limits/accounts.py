"""The subjects that a gateway remembers: a bounded number, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from aibrix_ray.limits.account import Account
from aibrix_ray.limits.rate_lease import RateLease
from aibrix_ray.limits.slot_lease import SlotLease
from aibrix_ray.limits.subject import Kind, Limits

#: A subject without a request for this long gives back what it holds ...
IDLE_S = 1.0
#: ... and is forgotten after a minute, in which any credit of it has been paid back.
FORGET_S = 60.0
MAX_SUBJECTS = 20_000
#: Oldest accounts looked at to find one that may be forgotten.
_LOOKS = 8


class Accounts:
    """Finds, opens and forgets accounts, and remembers of which the authority is to be told.

    A subject that is forgotten for want of room is at its first contact again when it comes back:
    it gets another credit. Past `max_subjects` subjects a minute `excess` holds a forgetting.
    """

    def __init__(
        self, *, gateways: int, on_mark: Callable[[bool], None], max_subjects: int
    ) -> None:
        self.by_key: OrderedDict[str, Account] = OrderedDict()
        self.gateways = gateways
        self.epoch = 0
        self._on_mark = on_mark
        self._max_subjects = max_subjects
        self._active: dict[Account, None] = {}
        self._marked: dict[Account, None] = {}

    @property
    def has_marks(self) -> bool:
        """Whether there is something to tell the authority."""
        return bool(self._marked)

    def set_gateways(self, gateways: int) -> None:
        """Divide the limits among another number of gateways."""
        self.gateways = max(1, gateways)
        for account in self.by_key.values():
            for lease in account.rates():
                lease.resize(lease.limit, self.gateways)
                if not account.claims:
                    lease.trim()
            if account.slots is not None:
                account.slots.resize(account.slots.cap, self.gateways)
            if account.has_surplus():
                self.mark(account)

    def get(self, key: str, limits: Limits) -> Account:
        """Return a subject's account; opens it if need be, and takes its limits if they changed."""
        account = self.by_key.get(key)
        if account is None:
            self._make_room()
        elif account.limits == limits:
            account.limits = limits  # Found by identity the next time.
            return account
        new = self.by_key[key] = self._open(key, limits, account)
        if account is not None:
            # Requests under way settle on the old account, which shares the leases that go on.
            account.active = False
            self._active.pop(account, None)
            self.mark(account)
        return new

    def touch(self, account: Account, now_s: float) -> None:
        """Take note that a request came."""
        account.used_s = now_s
        if not account.active:
            account.active = True
            self._active[account] = None
        if account.key in self.by_key:
            self.by_key.move_to_end(account.key)

    def mark(self, account: Account, *, urgent: bool = False) -> None:
        """Ask for an account to be told of in the next sync; `urgent`: somebody waits for it."""
        if not account.marked:
            account.marked = True
            self._marked[account] = None
            self._on_mark(urgent)
        elif urgent:
            self._on_mark(True)

    def mark_spent(self, now_s: float) -> None:
        """Mark every account of which an authority that begins anew would think too well."""
        for account in self.by_key.values():
            spent = any(r.remaining(now_s) < r.limit for r in account.rates())
            if spent or account.active or account.has_surplus():
                self.mark(account)

    def close(self) -> None:
        """Let every account give back what it holds."""
        for account in self.by_key.values():
            account.active = False
            self.mark(account)
        self._active.clear()

    def next_marked(self, most: int) -> list[Account]:
        """Return marked accounts and take their marks."""
        batch: list[Account] = []
        while self._marked and len(batch) < most:
            account = next(iter(self._marked))
            self.unmark(account)
            batch.append(account)
        return batch

    def unmark(self, account: Account) -> None:
        """Take an account's mark."""
        account.marked = False
        self._marked.pop(account, None)

    def mark_again(self, accounts: list[Account]) -> None:
        """Mark accounts that could not be told of, without a call; forgotten ones are let go."""
        for account in accounts:
            if account.open or account.claims or self.by_key.get(account.key) is account:
                account.marked = True
                self._marked[account] = None

    def sweep(self, now_s: float) -> None:
        """Once a second: let the idle give back what they hold, forget the long idle."""
        for account in list(self._active):
            if now_s - account.used_s > IDLE_S and not account.claims:
                account.active = False
                del self._active[account]
                self.mark(account)
                continue
            for lease in account.rates():
                lease.wake()
            if account.slots is not None:
                account.slots.wake()
        for account in self._forgettable(now_s):
            del self.by_key[account.key]

    def _forgettable(self, now_s: float) -> list[Account]:
        found = []
        for account in self.by_key.values():
            if now_s - account.used_s <= FORGET_S:
                break
            if account.is_empty():
                found.append(account)
        return found

    def _make_room(self) -> None:
        for _ in range(_LOOKS):
            if len(self.by_key) < self._max_subjects:
                return
            oldest = next(iter(self.by_key.values()))
            if oldest.open or oldest.claims:
                self.by_key.move_to_end(oldest.key)
                continue
            del self.by_key[oldest.key]
            self._active.pop(oldest, None)
            oldest.active = False
            self.mark(oldest)

    def _open(self, key: str, limits: Limits, old: Account | None) -> Account:
        account = Account(key, limits)
        if (requests := limits.requests_per_minute) is not None:
            account.requests = self._rate(
                old.requests if old else None, key, Kind.REQUESTS, requests
            )
        if (tokens := limits.tokens_per_minute) is not None:
            account.tokens = self._rate(old.tokens if old else None, key, Kind.TOKENS, tokens)
        if (cap := limits.max_concurrent) is not None:
            slots = old.slots if old else None
            account.slots = slots or SlotLease(f"{key}|{Kind.CONCURRENT}", cap, self.gateways)
            account.slots.resize(cap, self.gateways)
        return account

    def _rate(self, old: RateLease | None, key: str, kind: Kind, limit: int) -> RateLease:
        if old is None:
            return RateLease(f"{key}|{kind}", limit, self.gateways, self.epoch)
        old.level = min(old.level + limit - old.limit, limit)  # What is spent stays spent.
        old.resize(limit, self.gateways)
        old.trim()
        return old

    def __iter__(self) -> Iterator[Account]:
        return iter(self.by_key.values())

    def __len__(self) -> int:
        return len(self.by_key)
