"""The row with everything on: its configuration is valid, and its key opens the store."""

from __future__ import annotations

import json
from pathlib import Path

from aibrix_ray.config import parse_gateway_args, parse_gateway_user_config
from aibrix_ray.tenants import Store, store_url
from benchmarks.ours import make_all_on


def test_keys_and_limits_of_every_kind_are_on(tmp_path: Path) -> None:
    path, key = make_all_on(tmp_path, model="mock")

    config = json.loads(path.read_text())
    args = parse_gateway_args(config["args"], path="args")
    user_config = parse_gateway_user_config(config["user_config"], path="user_config")
    store = Store(store_url(args.auth.store))
    (tenant,) = store.tenants.list()
    (known,) = store.keys.list()
    store.close()

    assert args.auth.keys
    assert key.startswith(known.prefix)
    for limits in (user_config.models["mock"].limits, user_config.user_limits, tenant):
        assert limits.requests_per_minute is not None
        assert limits.tokens_per_minute is not None
        assert limits.max_concurrent is not None
