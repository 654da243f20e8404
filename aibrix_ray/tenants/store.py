"""The durable store of tenants, keys and usage: one object a process, used from threads."""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa

from aibrix_ray.tenants.database import Database
from aibrix_ray.tenants.key_rows import KeyRows
from aibrix_ray.tenants.location import shown
from aibrix_ray.tenants.tenant_rows import TenantRows
from aibrix_ray.tenants.usage_rows import UsageRows


class Store:
    """Tenants, keys and usage on SQLite or PostgreSQL.

    Nothing is opened before the first call. Each call is one transaction, blocks for seconds at
    most, and may be made from any thread. When the database is away, calls raise
    `StoreUnavailable`; they work again once it is back.

    Attributes:
        tenants: tenants by name.
        keys: API keys by id, and by their hash.
        usage: what was used, by hour.
    """

    def __init__(self, url: sa.URL, *, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(url)
        self.tenants = TenantRows(self._database, clock)
        self.keys = KeyRows(self._database, clock)
        self.usage = UsageRows(self._database, clock)

    def check(self) -> None:
        """Reach the store, and make its tables where they are missing.

        Raises:
            ConfigError: the tables are those of another version, or the file cannot be made.
            StoreUnavailable: it cannot be reached.
        """
        self.keys.latest_change()

    def close(self) -> None:
        """Close the connections that are idle."""
        self._database.close()

    def __repr__(self) -> str:
        return f"Store({shown(self._database.url)})"
