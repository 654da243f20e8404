"""Counts what each key uses and writes it to the store, beside the requests."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from functools import partial

from aibrix_ray.errors import StoreUnavailable
from aibrix_ray.tenants.calls import StoreCalls
from aibrix_ray.tenants.records import UsageCounts, UsageKey
from aibrix_ray.tenants.store import Store
from aibrix_ray.tenants.tables import NAME_MAX
from aibrix_ray.tenants.tenant import Tenant
from aibrix_ray.tenants.usage_rows import HOUR_S
from aibrix_ray.types import Usage

logger = logging.getLogger(__name__)

_Key = tuple[int, str, str, str, str]


class UsageRecorder:
    """What this gateway's requests have used, added to the store every `flush_s` seconds.

    Several gateways add up. A batch whose arrival is in doubt is sent again, unchanged, and the
    store counts it once.

    When the store dies, counts are kept and sent later; there is one an hour, key, model and
    adapter, and beyond `max_rows` of them further ones are lost and counted in `lost_requests`.
    When the gateway is killed, its last `flush_s` seconds are lost.
    """

    def __init__(
        self,
        store: Store,
        calls: StoreCalls,
        *,
        clock: Callable[[], float] = time.time,
        flush_s: float = 5.0,
        max_rows: int = 50_000,
    ) -> None:
        self._store = store
        self._calls = calls
        self._clock = clock
        self._flush_s = flush_s
        self._max_rows = max_rows
        self._writer = uuid.uuid4().hex
        self._batch = 0
        self._pending: dict[_Key, UsageCounts] = {}
        self._sending: dict[UsageKey, UsageCounts] = {}
        self._task: asyncio.Task[None] | None = None
        self.lost_requests = 0

    def add(self, tenant: Tenant, model: str, adapter: str | None, usage: Usage | None) -> None:
        """Count one request that has ended; `usage` is None where nothing was used. O(1)."""
        hour_s = int(self._clock()) // HOUR_S * HOUR_S
        key = (hour_s, tenant.name, tenant.key_id, model, adapter or "")
        counts = self._pending.get(key)
        if counts is None:
            if len(self._pending) >= self._max_rows:
                self.lost_requests += 1
                return
            counts = self._pending[key] = UsageCounts()
        counts.requests += 1
        if usage is not None:
            counts.prompt_tokens += usage.prompt_tokens
            counts.cached_tokens += usage.cached_tokens
            counts.completion_tokens += usage.completion_tokens

    def start(self) -> None:
        """Write from now on, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="aibrix-usage")

    async def close(self) -> None:
        """Write what is left; waits for the store no longer than one call's time limit."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            while self._sending or self._pending:
                await self.flush()
        except StoreUnavailable as error:
            left = [*self._sending.values(), *self._pending.values()]
            lost = sum(counts.requests for counts in left)
            logger.error("the usage of %d requests is lost: %s", lost, error.reason)

    async def flush(self) -> None:
        """Write what was counted so far.

        Raises:
            StoreUnavailable: it is kept, to be written the next time.
        """
        if not self._sending:
            if not self._pending:
                return
            self._sending, self._pending = _storable(self._pending), {}
            self._batch += 1
        await self._calls.run(
            partial(self._store.usage.add, self._writer, self._batch, self._sending)
        )
        self._sending = {}

    async def _run(self) -> None:
        reachable, told_lost = True, 0
        while True:
            await asyncio.sleep(self._flush_s)
            try:
                await self.flush()
            except StoreUnavailable as error:
                if reachable:
                    logger.warning("usage is kept, to be written later: %s", error.reason)
                reachable = False
            except Exception:
                logger.exception("usage could not be written; it is tried again")
            else:
                reachable = True
            if self.lost_requests > told_lost:
                logger.error("the usage of %d requests is lost", self.lost_requests - told_lost)
                told_lost = self.lost_requests


def _storable(pending: dict[_Key, UsageCounts]) -> dict[UsageKey, UsageCounts]:
    """Return the counts under names that every database takes: not too long, without NUL."""
    found: dict[UsageKey, UsageCounts] = {}
    for (hour_s, tenant, key_id, *names), counts in pending.items():
        model, adapter = (name.replace("\0", "")[:NAME_MAX] for name in names)
        total = found.setdefault(UsageKey(hour_s, tenant, key_id, model, adapter), UsageCounts())
        total.requests += counts.requests
        total.prompt_tokens += counts.prompt_tokens
        total.cached_tokens += counts.cached_tokens
        total.completion_tokens += counts.completion_tokens
    return found
