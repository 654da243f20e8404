"""The beginning and the end of everything that a gateway owns."""

from __future__ import annotations

from pathlib import Path

import pytest

from aibrix_ray.config.tenancy import AuthConfig
from aibrix_ray.errors import ConfigError, StoreUnavailable
from aibrix_ray.tenants import NewKey, NewTenant, Store, Tenancy, UsageQuery, store_url
from aibrix_ray.types import Usage


async def test_a_gateway_finds_keys_and_leaves_its_usage_behind(url: str) -> None:
    store = Store(store_url(url, environ={}))
    store.tenants.create(NewTenant(name="acme"))
    key = store.keys.create(NewKey(tenant="acme")).key
    tenancy = Tenancy.of(AuthConfig(keys=True, store=url), environ={})
    tenancy.start()
    tenant = await tenancy.directory.lookup(key.encode())
    tenancy.recorder.add(tenant, "m", None, Usage(prompt_tokens=3))
    await tenancy.close()
    (row,) = store.usage.report(UsageQuery(group_by=("tenant",)))
    assert (row["tenant"], row["requests"], row["prompt_tokens"]) == ("acme", 1, 3)
    store.close()


async def test_a_store_that_is_away_hinders_neither_start_nor_end(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_text("no database" * 1000)
    tenancy = Tenancy.of(AuthConfig(store=f"sqlite:///{tmp_path}/t.db"), environ={})
    tenancy.start()
    with pytest.raises(StoreUnavailable):
        await tenancy.directory.lookup(b"sk-" + b"x" * 43)
    await tenancy.close()


def test_a_wrong_url_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"auth\.store"):
        Tenancy.of(AuthConfig(store="mysql://h/d"), environ={})
    with pytest.raises(ConfigError, match="AIBRIX_RAY_STORE"):
        Tenancy.of(AuthConfig(), environ={"AIBRIX_RAY_STORE": "mysql://h/d"})
