"""Stores on SQLite and on PostgreSQL, each test with an empty one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aibrix_ray.tenants import Store, StoreCalls, store_url
from tests.tenants.clock import Clock
from tests.tenants.postgres import Postgres, binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed: no initdb in PATH or /usr/lib/postgresql")
    server = Postgres(folder)
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tenants.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.make_database()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[Store]:
    made = Store(store_url(url, environ={}), clock=clock)
    yield made
    made.close()


@pytest.fixture
async def calls() -> AsyncIterator[StoreCalls]:
    made = StoreCalls()
    yield made
    made.close()
    # A connection that is in use while its store closes would be left to the collector.
    await asyncio.to_thread(made._executor.shutdown)
