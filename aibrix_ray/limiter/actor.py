"""The detached Limiter actor, one an installation, and a gateway's way to it.

Its state is in memory alone. When it dies Ray restarts it, and when it is gone for good the next
gateway that misses it makes it anew, under a new *incarnation*: each gateway joins again with what
it holds and last knew, so that nothing is lost that any living gateway knew (`limits/ledger.py`).
Until then gateways decide alone (`GatewayLimiter`).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from aibrix_ray import __version__
from aibrix_ray.limiter.authority import AuthorityUnreachable
from aibrix_ray.limits import Grants, Ledger, Sync
from aibrix_ray.telemetry import detached

NAME = "limiter"
#: The actor ends itself when nothing was heard for this long: no gateway runs that needs it.
IDLE_S = 60.0
_JANITOR_S = 1.0


def ensure_limiter(*, timeout_s: float = 30.0) -> Any:
    """Return the handle of the Limiter actor; makes it if need be. May block for seconds.

    An actor of an older version of this package is replaced.

    Raises:
        TimeoutError: none answered in time.
    """
    return detached.ensure(
        detached.DetachedActor(NAME, Limiter, detached.softly_on_head()), timeout_s=timeout_s
    )


class Limiter(detached.Versioned):
    """The actor around a `Ledger`; see there for what a sync does."""

    def __init__(self, *, idle_limit_s: float = IDLE_S, code_version: str = __version__) -> None:
        self._code_version = code_version
        self._idle_limit_s = idle_limit_s
        self._heard_s = time.monotonic()
        self._ledger = Ledger(uuid.uuid4().hex[:16], self._heard_s)
        self._me = detached.myself()
        self._janitor = asyncio.get_running_loop().create_task(self._clean())

    async def sync(self, sync: Sync) -> Grants:
        """Take what a gateway says, and grant what it asks for."""
        self._heard_s = time.monotonic()
        return self._ledger.sync(sync, self._heard_s)

    async def _clean(self) -> None:
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(_JANITOR_S)
            now_s = time.monotonic()
            # After a pause of this process, the calls of that time still wait to be read.
            if now_s - looked_s < 3 * _JANITOR_S and now_s - self._heard_s > self._idle_limit_s:
                await detached.end(self._me)
            looked_s = now_s


class ActorAuthority:
    """The Limiter actor as one gateway sees it; needs a Ray that this process is connected to."""

    def __init__(self) -> None:
        self._limiter: Any = None

    async def connect(self) -> None:
        """Find the actor, or make it.

        Raises:
            AuthorityUnreachable: none answered within half a minute.
        """
        try:
            self._limiter = await asyncio.to_thread(ensure_limiter)
        except detached.UNREACHABLE as error:
            raise AuthorityUnreachable(str(error)) from error

    async def sync(self, sync: Sync) -> Grants:
        """Call the actor.

        Raises:
            AuthorityUnreachable: it is dead or restarts.
        """
        try:
            grants: Grants = await asyncio.wrap_future(self._limiter.sync.remote(sync).future())
        except detached.UNREACHABLE as error:
            raise AuthorityUnreachable(str(error)) from error
        return grants

    async def close(self) -> None:
        """Forget the actor; it ends by itself when no gateway is left."""
        self._limiter = None
