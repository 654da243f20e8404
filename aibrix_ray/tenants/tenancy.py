"""Everything about tenants that one gateway owns, with one beginning and one end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self

from aibrix_ray.config.tenancy import AuthConfig
from aibrix_ray.tenants.calls import StoreCalls
from aibrix_ray.tenants.directory import TenantDirectory
from aibrix_ray.tenants.location import store_url
from aibrix_ray.tenants.recorder import UsageRecorder
from aibrix_ray.tenants.store import Store


class Tenancy:
    """The store, and what stands between it and a gateway's loop.

    A store that is away hinders neither the start nor the end of a gateway.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls = StoreCalls()
        self.directory = TenantDirectory(store, self.calls)
        self.recorder = UsageRecorder(store, self.calls)

    @classmethod
    def of(cls, auth: AuthConfig, *, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the tenancy of a gateway's settings; opens nothing.

        Raises:
            ConfigError: the store's URL is none, or its driver is missing.
        """
        return cls(Store(store_url(auth.store, environ=environ)))

    def start(self) -> None:
        """Follow the store and write usage from now on, on the running loop."""
        self.directory.start()
        self.recorder.start()

    async def close(self) -> None:
        """Write the usage that is left, then let go; call it once no request is under way."""
        await self.recorder.close()
        await self.directory.close()
        self.calls.close()
        self.store.close()
