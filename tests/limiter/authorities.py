"""Authorities that a test can reach into."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aibrix_ray.limiter import AuthorityUnreachable
from aibrix_ray.limits import Grants, Ledger, Sync


class SharedAuthority:
    """One ledger for several limiters in this process; a test takes it away or lets it hang.

    `reachable` false: every call fails, as with a Redis that is down. `answers` cleared: calls
    arrive and wait.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.ledger = Ledger("1", clock(), settled=True)
        self.clock = clock
        self.reachable = True
        self.answers = asyncio.Event()
        self.answers.set()
        self.syncs = 0

    def restart(self) -> None:
        """Forget everything, as an actor does that Ray restarts."""
        self.ledger = Ledger(f"{self.ledger.incarnation}1", self.clock())

    async def connect(self) -> None:
        if not self.reachable:
            raise AuthorityUnreachable("no such authority")

    async def sync(self, sync: Sync) -> Grants:
        if not self.reachable:
            raise AuthorityUnreachable("connection refused")
        await self.answers.wait()
        self.syncs += 1
        return self.ledger.sync(sync, self.clock())

    async def close(self) -> None:
        pass
