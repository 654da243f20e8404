"""Who counts for all gateways together, as one gateway sees it; and the one in its own process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from aibrix_ray.limits import Grants, Ledger, Sync


class AuthorityUnreachable(OSError):
    """The authority did not answer: it died, restarts, hangs, or the network is down."""


class Authority(Protocol):
    """Answers one sync after the other. Whatever it raises means that there was no answer."""

    async def connect(self) -> None:
        """Find the authority, or make it; called before the first sync and after each failure.

        May take seconds.

        Raises:
            AuthorityUnreachable: it cannot be found or made.
        """

    async def sync(self, sync: Sync) -> Grants:
        """Tell the authority and return its answer.

        Raises:
            AuthorityUnreachable: there was none; the sync may have arrived.
        """

    async def close(self) -> None:
        """Let go of the connection."""


class LocalAuthority:
    """The authority of a gateway that has no siblings; its state dies with the gateway."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ledger = Ledger("local", clock(), settled=True)

    async def connect(self) -> None:
        """Do nothing: it is here."""

    async def sync(self, sync: Sync) -> Grants:
        """Answer at once."""
        return self._ledger.sync(sync, self._clock())

    async def close(self) -> None:
        """Do nothing."""
