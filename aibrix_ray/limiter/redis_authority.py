"""The authority in a Redis that somebody else runs: for gateways of several clusters, or of none.

Every gateway that is given the same URL counts together with the others. One script does a whole
sync, so that nothing comes between. What happens when Redis dies is what happens when any authority
does (`GatewayLimiter`); when it comes back empty, it learns from the gateways what they know. Where
a replica takes over that lacked the last writes, what was granted in them is granted again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from aibrix_ray.errors import ConfigError
from aibrix_ray.limiter.authority import AuthorityUnreachable
from aibrix_ray.limits import Grants, RateGrant, SlotGrant, Sync
from aibrix_ray.limits.ledger import DEAF_S, RECLAIM_S

#: In braces: a Redis cluster keeps what has them in one slot, as a script needs it.
PREFIX = "{aibrix_ray:limits}"
_TIMEOUT_S = 1.0
_SCRIPT = Path(__file__).with_name("ledger.lua")


class RedisAuthority:
    """A Redis as one gateway sees it.

    Raises:
        ConfigError: the URL is none of Redis's.
    """

    def __init__(self, url: str, *, prefix: str = PREFIX, reclaim_s: float = RECLAIM_S) -> None:
        self._prefix = prefix
        self._reclaim_s = reclaim_s
        try:
            self._redis = Redis.from_url(
                url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                # Whether a sync that failed arrived is for the next one to say.
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            raise ConfigError(
                path="auth.limiter",
                value="a URL that is not shown, since it may hold a password",
                expected="redis://, rediss:// or unix:// and an address",
                hint="percent-encode what is special in a password; a port is a number",
            ) from None
        self._script = self._redis.register_script(_SCRIPT.read_text())

    async def connect(self) -> None:
        """Do nothing: the first sync opens the connection."""

    async def sync(self, sync: Sync) -> Grants:
        """Run the script.

        Raises:
            AuthorityUnreachable: Redis did not answer, or with an error.
        """
        told, incarnation = msgspec.json.encode(sync), uuid.uuid4().hex
        try:
            reply = await self._script(
                keys=[self._prefix], args=[told, incarnation, self._reclaim_s, DEAF_S]
            )
        except RedisError as error:
            raise AuthorityUnreachable(f"{type(error).__name__}: {error}") from error
        return _grants(reply)

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()


def _grants(reply: Sequence[Any]) -> Grants:
    incarnation = reply[0].decode()
    if not reply[1]:
        return Grants(incarnation, known=False)
    _, _, gateways, settled, granted, levels, leases, free = reply
    return Grants(
        incarnation,
        known=True,
        gateways=gateways,
        settled=bool(settled),
        rates=[RateGrant(*pair) for pair in zip(granted, map(float, levels), strict=True)],
        slots=[SlotGrant(*pair) for pair in zip(leases, free, strict=True)],
    )
