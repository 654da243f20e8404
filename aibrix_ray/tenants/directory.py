"""Which key belongs to which tenant, in a gateway's memory. Asks the store beside the requests."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from aibrix_ray.errors import InvalidApiKey, StoreUnavailable
from aibrix_ray.limits import Limits
from aibrix_ray.tenants.calls import StoreCalls
from aibrix_ray.tenants.records import FoundKey
from aibrix_ray.tenants.secret import digest_of, looks_like_key
from aibrix_ray.tenants.store import Store
from aibrix_ray.tenants.tenant import Priority, Tenant, key_of

logger = logging.getLogger(__name__)

#: Keys that one question to the store asks for.
_BATCH = 500
#: From an answer of the store to the next question.
_PAUSE_S = 0.02
#: Requests with different unknown keys that may wait for the store.
_MOST_WAITING = 10_000
#: Wrong keys that are remembered, and for how long.
_MOST_UNKNOWN = 10_000
_UNKNOWN_S = 5.0

_Answer = Tenant | StoreUnavailable | None


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    tenant: Tenant
    expires_s: float | None
    change: int  # of the store, as of which this is right


class TenantDirectory:
    """The keys that a gateway has met, kept right by a number that grows in the store.

    A change (a key revoked, a tenant's limits) is seen within `poll_s` and a call of the store.
    However many unknown keys come in, there is one question at a time to the store, for up to 500
    of them, and the memory for them is bounded.

    When the store dies, keys that this gateway has met go on working as they were (an expiry still
    ends them), and others get `StoreUnavailable`; when it is back, what has changed meanwhile is
    taken over. A gateway that starts meanwhile knows no key.
    """

    def __init__(
        self,
        store: Store,
        calls: StoreCalls,
        *,
        clock: Callable[[], float] = time.time,
        poll_s: float = 2.0,
        max_keys: int = 100_000,
    ) -> None:
        self._store = store
        self._calls = calls
        self._clock = clock
        self._poll_s = poll_s
        self._max_keys = max_keys
        self._known: dict[bytes, _Entry] = {}
        self._unknown: dict[bytes, float] = {}  # → until when it is believed to be wrong
        self.reachable = True  # the store, as of the last question
        self._change = -1
        self._stale = False  # an entry may be of another change
        self._waiting: dict[bytes, asyncio.Future[_Answer]] = {}
        self._queue: deque[bytes] = deque()
        self._asker: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the store's changes from now on, on the running loop."""
        self._follower = asyncio.create_task(self._follow(), name="aibrix-tenants")

    async def close(self) -> None:
        """Stop following; requests that wait for an unknown key get `StoreUnavailable`."""
        tasks = [task for task in (self._follower, self._asker) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def find(self, key: bytes) -> Tenant | None:
        """Return the tenant of a key that was met before; None: ask `lookup`. Microseconds."""
        digest = digest_of(key)
        entry = self._known.get(digest)
        # How long the dictionary takes depends on digests, which nobody can choose; that they are
        # equal is decided in constant time all the same.
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            return None
        if entry.expires_s is not None and entry.expires_s <= self._clock():
            return None
        return entry.tenant

    async def lookup(self, key: bytes | None) -> Tenant:
        """Return the tenant of any key; waits for the store where the key is not known yet.

        Raises:
            InvalidApiKey: there is no key, or it is unknown, expired or revoked.
            StoreUnavailable: the key is not known here, and the store cannot be asked.
        """
        if key is None:
            raise InvalidApiKey(
                "You didn't provide an API key. Send it as `Authorization: Bearer KEY`."
            )
        tenant = self.find(key)
        if tenant is None and looks_like_key(key):
            tenant = await self._ask_for(digest_of(key))
        if tenant is None:
            raise InvalidApiKey
        return tenant

    async def authenticate(self, headers: Sequence[tuple[bytes, bytes]]) -> Tenant:
        """Return the tenant of a request, by its key. Raises what `lookup` does."""
        return await self.lookup(key_of(headers))

    async def refresh(self) -> None:
        """Take over what has changed in the store.

        Raises:
            StoreUnavailable: it cannot be asked; everything stays as it was.
        """
        change = await self._calls.run(self._store.keys.latest_change)
        if change == self._change and not self._stale:
            return
        self._unknown.clear()
        self._change, self._stale = change, False
        old = [digest for digest, entry in self._known.items() if entry.change != change]
        try:
            for start in range(0, len(old), _BATCH):
                await self._read(old[start : start + _BATCH])
        except BaseException:
            self._stale = True
            raise

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                if self.reachable:
                    logger.warning("the store of keys cannot be reached: %s", error.reason)
                self.reachable = False
            except Exception:
                logger.exception("the store's changes could not be taken over")
            else:
                if not self.reachable:
                    logger.warning("the store of keys can be reached again")
                self.reachable = True

    async def _ask_for(self, digest: bytes) -> Tenant | None:
        if digest in self._known:  # it is known and has expired
            return None
        until_s = self._unknown.get(digest)
        if until_s is not None and self._clock() < until_s:
            return None
        future = self._waiting.get(digest)
        if future is None:
            if len(self._waiting) >= _MOST_WAITING:
                raise StoreUnavailable("too many unknown keys at once")
            future = self._waiting[digest] = asyncio.get_running_loop().create_future()
            self._queue.append(digest)
            if self._asker is None:
                self._asker = asyncio.create_task(self._ask(), name="aibrix-tenants-lookup")
        # Others may wait for the same key, so one that leaves must not take the answer away.
        answer = await asyncio.shield(future)
        if isinstance(answer, StoreUnavailable):
            raise StoreUnavailable(answer.reason)
        return answer

    async def _ask(self) -> None:
        """Answer those who wait, one question to the store after the other."""
        try:
            while self._queue:
                count = min(len(self._queue), _BATCH)
                digests = [self._queue.popleft() for _ in range(count)]
                answers: dict[bytes, _Answer]
                try:
                    answers = {**await self._read(digests)}
                except StoreUnavailable as error:
                    answers = dict.fromkeys(digests, error)
                for digest in digests:
                    self._waiting.pop(digest).set_result(answers[digest])
                await asyncio.sleep(_PAUSE_S)
        except Exception:
            logger.exception("unknown keys could not be looked up")
        finally:
            self._asker = None
            self._queue.clear()
            while self._waiting:
                _, future = self._waiting.popitem()
                future.set_result(StoreUnavailable("the lookup was ended"))

    async def _read(self, digests: Sequence[bytes]) -> dict[bytes, Tenant | None]:
        """Ask the store for keys, and keep what it says. Raises `StoreUnavailable`."""
        change, found = await self._calls.run(partial(self._store.keys.find, digests))
        if change != self._change:
            self._stale = True  # the next refresh decides whether they are still right
        return {digest: self._keep(digest, found.get(digest), change) for digest in digests}

    def _keep(self, digest: bytes, found: FoundKey | None, change: int) -> Tenant | None:
        if found is None:
            self._known.pop(digest, None)
            _bound(self._unknown, _MOST_UNKNOWN)
            self._unknown[digest] = self._clock() + _UNKNOWN_S
            return None
        if digest not in self._known:
            _bound(self._known, self._max_keys)
        tenant = _tenant_of(found)
        self._known[digest] = _Entry(found.digest, tenant, found.expires_s, change)
        expired = found.expires_s is not None and found.expires_s <= self._clock()
        return None if expired else tenant


def _bound(entries: dict[bytes, _Entry] | dict[bytes, float], most: int) -> None:
    """Make room for one more: what came first goes."""
    while len(entries) >= most:
        del entries[next(iter(entries))]


def _tenant_of(found: FoundKey) -> Tenant:
    record = found.tenant
    return Tenant(
        tenant_id=record.id,
        name=record.name,
        allowed_models=_models(record.allowed_models),
        limits=_limits(record.requests_per_minute, record.tokens_per_minute, record.max_concurrent),
        priority=Priority[record.priority.upper()],
        slo_tier=record.slo_tier,
        weight=record.weight,
        key_id=found.key_id,
        is_admin=found.is_admin,
    )


# One object for equal values: many keys have the same, and limits are compared by identity first.
_limits = lru_cache(maxsize=10_000)(Limits)


@lru_cache(maxsize=10_000)
def _models(names: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)
