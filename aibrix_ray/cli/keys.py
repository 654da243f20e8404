"""`aibrix-ray keys …`: API keys, in the store itself. No gateway needs to run."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from aibrix_ray.cli.store import (
    ConfigFlag,
    JsonFlag,
    StoreFlag,
    day,
    fill,
    open_store,
    print_json,
    print_table,
    seconds,
)
from aibrix_ray.errors import Conflict

_DEFAULT_TENANT = "default"
_FLAGS = {"tenant": "--tenant", "name": "--name", "expires_in_s": "--expires-in"}

KeyId = Annotated[str, typer.Argument(help="Id of the key, as `keys list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the command group `keys`."""
    group = typer.Typer(
        help="Make, list, revoke and rotate API keys. Gateways follow within seconds.",
        no_args_is_help=True,
    )
    group.command("create")(create)
    group.command("list")(list_keys)
    group.command("revoke")(revoke)
    group.command("rotate")(rotate)
    app.add_typer(group, name="keys")


def create(
    tenant: Annotated[
        str,
        typer.Option(help="Tenant that the key belongs to; `default` is made if it is not there."),
    ] = _DEFAULT_TENANT,
    name: Annotated[str, typer.Option(help="What the key is for; shown in lists.")] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="The key may also use the admin API.")
    ] = False,
    expires_in: Annotated[
        str, typer.Option(help="How long it works, such as 90d or 12h; default: for ever.")
    ] = "",
    create_tenant: Annotated[
        bool, typer.Option("--create-tenant", help="Make the tenant if it is not there.")
    ] = False,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print it, this once: it is not stored, only its hash is.

    The key alone goes to standard output: KEY=$(aibrix-ray keys create).
    """
    from aibrix_ray.tenants import NewKey, NewTenant, key_data

    fields = {
        "tenant": tenant,
        "name": name,
        "role": "admin" if admin else "user",
        "expires_in_s": seconds(expires_in, "--expires-in") if expires_in else None,
    }
    spec = fill(NewKey, fields, _FLAGS)
    with open_store(store, config) as opened:
        if create_tenant or tenant == _DEFAULT_TENANT:
            with contextlib.suppress(Conflict):  # it is there
                opened.tenants.create(NewTenant(name=tenant))
        issued = opened.keys.create(spec)
    if as_json:
        print_json({**key_data(issued.record, time.time()), "key": issued.key})
        return
    _say(f"{issued.record.id}, {issued.record.role} of tenant {tenant}; it is shown this once:")
    typer.echo(issued.key)


def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only those of this tenant.")] = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """List keys, the oldest first, without their texts."""
    from aibrix_ray.tenants import key_data

    with open_store(store, config) as opened:
        keys = opened.keys.list(tenant=tenant)
    now_s = time.time()
    if as_json:
        print_json([key_data(key, now_s) for key in keys])
        return
    print_table(
        ("id", "tenant", "name", "key", "role", "state", "created", "expires", "last used"),
        [
            (
                *(key.id, key.tenant, key.name, f"{key.prefix}…", key.role, key.state(now_s)),
                *(day(key.created_s), day(key.expires_s), day(key.last_used_s)),
            )
            for key in keys
        ],
    )


def revoke(
    key: Annotated[list[str], typer.Argument(help="Ids of keys, as `keys list` shows them.")],
    store: StoreFlag = None,
    config: ConfigFlag = None,
) -> None:
    """End keys for good; gateways refuse them within seconds."""
    with open_store(store, config) as opened:
        for each in key:
            opened.keys.revoke(each)
            _say(f"revoked {each}")


def rotate(
    key: KeyId,
    grace: Annotated[
        str, typer.Option(help="How long the old key goes on working, such as 1h; 0: not at all.")
    ] = "1h",
    store: StoreFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key in place of another and print it, this once; the old one ends after the grace."""
    from aibrix_ray.tenants import Rotation, key_data

    fields = {"grace_s": seconds(grace, "--grace")}
    spec = fill(Rotation, fields, {"grace_s": "--grace"})
    with open_store(store, config) as opened:
        issued = opened.keys.rotate(key, grace_s=spec.grace_s)
    if as_json:
        print_json({**key_data(issued.record, time.time()), "key": issued.key})
        return
    _say(f"{issued.record.id} in place of {key}, which ends in {grace}; it is shown this once:")
    typer.echo(issued.key)


def _say(text: str) -> None:
    """Tell people; standard output is for the key."""
    typer.echo(text, err=True)
