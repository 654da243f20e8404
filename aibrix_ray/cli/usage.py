"""`aibrix-ray usage`: what tenants have used, from the store itself."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from aibrix_ray.cli.store import ConfigFlag, StoreFlag, open_store, print_json, print_table
from aibrix_ray.errors import BadRequest, ConfigError

_FORMATS = ("table", "csv", "json")


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""
    app.command("usage")(usage)


def usage(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="From then on: 2026-11-25, 2026-11-25T10:00Z, 7d or 12h ago."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Up to then, likewise.")] = None,
    group_by: Annotated[
        str,
        typer.Option(
            help="One row for each of these, with commas: day, hour, tenant, key, model, "
            "adapter. Empty: one row."
        ),
    ] = "tenant,model,adapter",
    shape: Annotated[
        str, typer.Option("--format", help="table, csv or json.", metavar="FORMAT")
    ] = "table",
    store: StoreFlag = None,
    config: ConfigFlag = None,
) -> None:
    """Print requests and tokens. Times are whole hours, in UTC; gateways write within seconds."""
    from aibrix_ray.tenants import COUNTS, UsageQuery, parse_groups, parse_moment, to_csv

    if shape not in _FORMATS:
        raise ConfigError(path="--format", value=shape, expected=f"one of {', '.join(_FORMATS)}")
    now_s = time.time()
    try:
        query = UsageQuery(
            group_by=parse_groups(group_by, param="--group-by"),
            tenant=tenant,
            model=model,
            since_s=None if since is None else parse_moment(since, now_s, param="--since"),
            until_s=None if until is None else parse_moment(until, now_s, param="--until"),
        )
    except BadRequest as error:
        flags = {"--group-by": group_by, "--since": since, "--until": until}
        flag = error.param or ""
        expected = error.message.partition(" is ")[2]
        raise ConfigError(path=flag, value=flags.get(flag), expected=expected) from None
    with open_store(store, config) as opened:
        rows = opened.usage.report(query)
    if shape == "json":
        print_json(rows)
    elif shape == "csv":
        typer.echo(to_csv(rows, query.group_by), nl=False)
    else:
        columns = (*query.group_by, *COUNTS)
        print_table(
            tuple(name.replace("_", " ") for name in columns),
            [tuple(row[name] for name in columns) for row in rows],
        )
