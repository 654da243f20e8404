"""A Redis of our own, and gateways' limiters that are closed after their test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from aibrix_ray.limiter import Authority, GatewayLimiter
from tests.limiter.redis_server import PROGRAM, RedisServer
from tests.telemetry.conftest import cluster, local_ray

__all__ = ["cluster", "local_ray"]

MakeLimiter = Callable[..., Any]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip("Redis is not installed: no redis-server in PATH")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis_server.clear()
    return redis_server.url


@pytest.fixture
async def make_limiter() -> AsyncIterator[MakeLimiter]:
    """Make limiters; those that still run are closed at the end."""
    made: list[GatewayLimiter] = []

    async def make(authority: Authority, **settings: Any) -> GatewayLimiter:
        limiter = GatewayLimiter(settings.pop("name", f"g{len(made)}"), authority, **settings)
        made.append(limiter)
        await limiter.start()
        return limiter

    yield make
    for limiter in made:
        await limiter.close()
