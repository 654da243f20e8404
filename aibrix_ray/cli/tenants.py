"""`aibrix-ray tenants …`: who may use the gateways and how much, in the store itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aibrix_ray.cli.store import (
    ConfigFlag,
    JsonFlag,
    StoreFlag,
    fill,
    open_store,
    print_json,
    print_table,
)
from aibrix_ray.errors import ConfigError

_NONE = "none"
_FLAGS = {
    "name": "NAME",
    "allowed_models": "--model",
    "requests_per_minute": "--rpm",
    "tokens_per_minute": "--tpm",
    "max_concurrent": "--max-concurrent",
    "priority": "--priority",
    "slo_tier": "--slo-tier",
    "weight": "--weight",
}

Name = Annotated[str, typer.Argument(help="Name of the tenant.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="Model that it may use; repeatable. `none`: every model."),
]
Rpm = Annotated[
    str | None, typer.Option("--rpm", help="Requests a minute; `none`: no limit.", metavar="N")
]
Tpm = Annotated[
    str | None,
    typer.Option("--tpm", help="Prompt and answer tokens a minute; `none`: no limit.", metavar="N"),
]
Concurrent = Annotated[
    str | None,
    typer.Option(
        "--max-concurrent", help="Requests under way at once; `none`: no limit.", metavar="N"
    ),
]
PriorityFlag = Annotated[
    str | None, typer.Option("--priority", help="high, normal or low: who goes first in a queue.")
]
SloTier = Annotated[
    str | None, typer.Option("--slo-tier", help="Service level that policies may read; `none`.")
]
Weight = Annotated[
    float | None, typer.Option("--weight", help="Share among the tenants of its class.")
]


def register(app: typer.Typer) -> None:
    """Add the command group `tenants`."""
    group = typer.Typer(
        help="Make, list, change and delete tenants. Gateways follow within seconds.",
        no_args_is_help=True,
    )
    group.command("create")(create)
    group.command("list")(list_tenants)
    group.command("set")(change)
    group.command("delete")(delete)
    app.add_typer(group, name="tenants")


def create(
    name: Name,
    model: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    max_concurrent: Concurrent = None,
    priority: PriorityFlag = None,
    slo_tier: SloTier = None,
    weight: Weight = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a tenant. What is not given is not limited."""
    from aibrix_ray.tenants import NewTenant, tenant_data

    fields = _given(model, rpm, tpm, max_concurrent, priority, slo_tier, weight)
    spec = fill(NewTenant, {"name": name, **fields}, _FLAGS)
    with open_store(store, config) as opened:
        tenant = opened.tenants.create(spec)
    if as_json:
        print_json(tenant_data(tenant))
    else:
        typer.echo(f"made {name}; a key for it: aibrix-ray keys create --tenant {name}")


def list_tenants(
    store: StoreFlag = None, config: ConfigFlag = None, as_json: JsonFlag = False
) -> None:
    """List tenants by name."""
    from aibrix_ray.tenants import tenant_data

    with open_store(store, config) as opened:
        tenants = opened.tenants.list()
    if as_json:
        print_json([tenant_data(tenant) for tenant in tenants])
        return
    print_table(
        ("name", "models", "rpm", "tpm", "concurrent", "priority", "slo tier", "weight"),
        [
            (
                tenant.name,
                "all" if tenant.allowed_models is None else ", ".join(tenant.allowed_models),
                *(tenant.requests_per_minute, tenant.tokens_per_minute, tenant.max_concurrent),
                *(tenant.priority, tenant.slo_tier, f"{tenant.weight:g}"),
            )
            for tenant in tenants
        ],
    )


def change(
    name: Name,
    model: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    max_concurrent: Concurrent = None,
    priority: PriorityFlag = None,
    slo_tier: SloTier = None,
    weight: Weight = None,
    store: StoreFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Change what is given of a tenant; `none` takes a limit away."""
    from aibrix_ray.tenants import TenantSettings, tenant_data

    fields = _given(model, rpm, tpm, max_concurrent, priority, slo_tier, weight)
    if not fields:
        flags = [flag for flag in _FLAGS.values() if flag.startswith("--")]
        raise ConfigError(path=name, value="nothing", expected=f"one of {', '.join(flags)}")
    spec = fill(TenantSettings, fields, _FLAGS)
    with open_store(store, config) as opened:
        tenant = opened.tenants.change(name, spec)
    if as_json:
        print_json(tenant_data(tenant))
    else:
        typer.echo(f"changed {name}")


def delete(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also if it has keys that work.")] = False,
    store: StoreFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Delete a tenant and its keys; its usage stays."""
    with open_store(store, config) as opened:
        opened.tenants.delete(name, force=force)
    typer.echo(f"deleted {name}")


def _given(
    models: list[str] | None,
    rpm: str | None,
    tpm: str | None,
    max_concurrent: str | None,
    priority: str | None,
    slo_tier: str | None,
    weight: float | None,
) -> dict[str, Any]:
    """Return the fields of the flags that were given; `none` is null."""
    fields: dict[str, Any] = {}
    if models:
        fields["allowed_models"] = None if models == [_NONE] else tuple(models)
    limits = {"requests_per_minute": rpm, "tokens_per_minute": tpm}
    for field, text in {**limits, "max_concurrent": max_concurrent}.items():
        if text is not None:
            fields[field] = None if text == _NONE else _number(text, _FLAGS[field])
    if slo_tier is not None:
        fields["slo_tier"] = None if slo_tier == _NONE else slo_tier
    if priority is not None:
        fields["priority"] = priority
    if weight is not None:
        fields["weight"] = weight
    return fields


def _number(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(path=flag, value=text, expected="a whole number, or none") from None
