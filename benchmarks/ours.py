"""Our own command line, as the benchmarks start it: `aibrix-ray` of this environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: Limits that are counted for every request and that no benchmark reaches.
_NEVER_REACHED = {
    "requests_per_minute": 1_000_000_000,
    "tokens_per_minute": 1_000_000_000,
    "max_concurrent": 1_000_000,
}


def our_command() -> Path:
    """Return where our command is in this environment, if it is."""
    return Path(sys.executable).with_name("aibrix-ray")


def why_not_ours(subcommand: str) -> str | None:
    """Return why our command cannot be run with `subcommand` here, or None."""
    if not our_command().exists():
        return "the command aibrix-ray is not in this environment: pip install -e ."
    asked = [str(our_command()), subcommand, "--help"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        return f"this aibrix-ray has no command {subcommand!r}"
    return None


def application(name: str, import_path: str, args: Mapping[str, object]) -> dict[str, object]:
    """Return one application of our YAML."""
    return {"name": name, "import_path": import_path, "route_prefix": None, "args": args}


def why_not_all_on() -> str | None:
    """Return why our gateway cannot be run with keys and limits here, or None."""
    asked = [str(our_command()), "gateway", "--help"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    if "--config" not in told.stdout:
        return "`aibrix-ray gateway` takes no --config, so neither keys nor limits"
    return None


def make_all_on(folder: Path, *, model: str) -> tuple[Path, str]:
    """Write the configuration of a gateway with keys and limits on; return it and a key for it.

    Everything that can be limited is: the key's tenant, the model, and each user of the tenant.
    """
    from aibrix_ray.tenants import NewKey, NewTenant, Store, store_url

    location = f"sqlite:///{folder / 'keys.db'}"
    store = Store(store_url(flag=location))
    try:
        store.tenants.create(NewTenant.model_validate({"name": "benchmark", **_NEVER_REACHED}))
        key = store.keys.create(NewKey(tenant="benchmark")).key
    finally:
        store.close()
    config = {
        "args": {"auth": {"keys": True, "store": location}},
        "user_config": {
            "models": {model: {"limits": _NEVER_REACHED}},
            "user_limits": _NEVER_REACHED,
        },
    }
    path = folder / "gateway.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path, key
