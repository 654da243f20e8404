"""What the commands on the store share: its flags, its opening, and how fields become flags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from aibrix_ray.cli.config import read_effective
from aibrix_ray.config.part import Part
from aibrix_ray.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from aibrix_ray.tenants import Store

P = TypeVar("P", bound=Part)

StoreFlag = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Store of tenants and keys, as a URL: postgresql://… or sqlite:////path. "
        "Precedence: flag > environment (AIBRIX_RAY_STORE) > --config FILE > a file in the "
        "user's state folder.",
        metavar="URL",
    ),
]
ConfigFlag = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file whose auth.store is meant.", metavar="FILE"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_DURATION = re.compile(r"(\d{1,9})([smhd]?)")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@contextmanager
def open_store(flag: str | None, file: Path | None) -> Iterator[Store]:
    """Open the store that flags, environment and file name; close it at the end.

    Raises:
        ConfigError: it is none, or cannot be reached.
    """
    # Not at the top: SQLAlchemy takes a while to load, and `--help` must answer at once.
    from aibrix_ray.tenants import Store, shown, store_url

    configured = None
    if file is not None:
        parsed, _ = read_effective(file, [])
        configured = parsed.gateway.auth.store if parsed.gateway is not None else None
    url = store_url(configured, flag=flag)
    store = Store(url)
    try:
        yield store
    except StoreUnavailable as error:
        raise ConfigError(
            path="the store",
            value=shown(url),
            expected="a store that can be reached",
            hint=error.reason,
        ) from error
    finally:
        store.close()


def fill(model: type[P], fields: Mapping[str, Any], flags: Mapping[str, str]) -> P:
    """Return the model of what flags have said.

    Args:
        model: what to fill.
        fields: its fields.
        flags: field → the flag that sets it, for errors.

    Raises:
        ConfigError: a value is wrong; its flag is named.
    """
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise ConfigError(
            path=flags.get(name, name),
            value=first["input"],
            expected=first["msg"][:1].lower() + first["msg"][1:],
        ) from None


def seconds(text: str, flag: str) -> int:
    """Read `90d`, `12h`, `30m`, `45s` or `45`.

    Raises:
        ConfigError: it is none of these.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(path=flag, value=text, expected="a time such as 90d, 12h, 30m or 45s")
    return int(match[1]) * _UNITS_S[match[2]]


def print_json(data: object) -> None:
    """Print data as JSON on standard output."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print rows as a table; what is None is a dash."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row))
    # Values are the user's: "[red]" in one of them is no markup.
    Console(markup=False, highlight=False, emoji=False).print(table)


def day(moment_s: float | None) -> str | None:
    """Return a moment as tables show it, in UTC."""
    if moment_s is None:
        return None
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%d %H:%M")
