"""`aibrix-ray config …`: check, show and compare installations without starting anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aibrix_ray.cli import print_error
from aibrix_ray.config import (
    NOTHING,
    PRECEDENCE,
    Change,
    Diff,
    Effect,
    GatewayUserConfig,
    ParsedFile,
    ServeFile,
    Sourced,
    check,
    diff,
    json_schema,
)
from aibrix_ray.errors import ConfigError
from aibrix_ray.routing import POLICIES, make_policy

_SECRET = re.compile(r"(?:^|_)(?:token|key|secret|password|credentials?)$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/?#@:]*):[^/?#]*(?=@)")
_MASK = "********"
_USAGE_ERROR = 2

#: the argument and the flag that every command which reads a file takes.
File = Annotated[Path, typer.Argument(help="Serve configuration file (YAML).", metavar="FILE")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="APPLICATION.PATH=VALUE",
        help="Set one value, as YAML: gateway.port=9000, tiny.replicas.max=2, "
        f"gateway.user_config.routing.policy=least-request. Repeatable. {PRECEDENCE}",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command group `config`."""
    group = typer.Typer(
        help=f"Check, show and compare configuration files. {PRECEDENCE}", no_args_is_help=True
    )
    group.command("check")(check_file)
    group.command("show")(show)
    group.command("schema")(schema)
    group.command("diff")(diff_files)
    app.add_typer(group, name="config")


def check_file(file: File, settings: Settings = None) -> None:
    """Check a file and print what it would serve; every problem is listed, exit code 2."""
    parsed, _ = read_effective(file, settings or [])
    typer.echo(f"OK: {file}")
    _console().print(_summary(parsed))


def show(file: File, settings: Settings = None) -> None:
    """Print every value in effect and where it came from: flag, env, file or default."""
    _, sources = read_effective(file, settings or [])
    table = _table("name", "value", "source")
    for name, (value, source) in sources.items():
        table.add_row(name, _shown(name, value), source)
    _console().print(table)


def schema() -> None:
    """Print the JSON Schema of a configuration file, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2))


def diff_files(
    old: Annotated[Path, typer.Argument(help="The file that runs now.", metavar="OLD")],
    new: Annotated[Path, typer.Argument(help="The file to be applied.", metavar="NEW")],
) -> None:
    """Print what applying NEW does to an installation that runs OLD: what restarts and why.

    The files alone are compared, without environment and flags.
    """
    _print_diff(diff(_read_alone(old), _read_alone(new)))


def read_effective(file: Path, settings: list[str]) -> tuple[ParsedFile, dict[str, Sourced]]:
    """Return the file with the process's environment and the flags in it.

    Prints every problem and ends the command with exit code 2 if there are any.

    Raises:
        ConfigError: the file cannot be read at all.
    """
    found, problems = check(read_text(file), os.environ, settings)
    if found is not None:
        parsed = found[0]
        base = f"{parsed.gateway_name}.user_config"
        problems = tuple(policy_problems(parsed.user_config, base=base))
    for problem in problems:
        print_error(problem)
    if found is None or problems:
        raise typer.Exit(_USAGE_ERROR)
    return found


def read_text(file: Path, *, path: str = "FILE") -> str:
    """Return the text of a file; `path` is what errors call it.

    Raises:
        ConfigError: there is no such file, or it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            path=path, value=str(file), expected="a readable UTF-8 file", hint=str(error)
        ) from error


def policy_problems(config: GatewayUserConfig, *, base: str) -> list[ConfigError]:
    """Return what the routing policies refuse: names and options that they do not know.

    A policy given by import path is not loaded: it need not be installed where a file is checked.
    `base` is where the settings stand.
    """
    parts = [(f"{base}.routing", config.routing)]
    for model, settings in config.models.items():
        if settings.routing is not None:
            parts.append((f"{base}.models[{json.dumps(model)}].routing", settings.routing))
    problems = []
    for path, routing in parts:
        if routing.policy not in POLICIES and ":" in routing.policy:
            continue
        try:
            make_policy(routing.policy, seed=0, options=routing.options, path=path)
        except ConfigError as error:
            problems.append(error)
    return problems


def _read_alone(file: Path) -> ParsedFile:
    try:
        return ServeFile.read(read_text(file)).parse()
    except ConfigError as error:
        raise ConfigError(
            path=f"{file}: {error.path}",
            value=error.value,
            expected=error.expected,
            hint=error.hint,
        ) from error


def _summary(parsed: ParsedFile) -> Table:
    table = _table("application", "serves", "engine", "hardware", "replicas")
    gateway = parsed.gateway
    if gateway is not None and parsed.gateway_name is not None:
        address = (
            f"{gateway.host}:{gateway.port}" if gateway.listen == "own" else "Ray Serve's proxy"
        )
        policy = f"gateway ({parsed.user_config.routing.policy})"
        table.add_row(parsed.gateway_name, address, policy, "", f"{gateway.per_node} a node")
    for name, group in parsed.groups.items():
        spread = group.tensor_parallel * group.pipeline_parallel
        hardware = f"{spread} x {group.accelerator}" if group.accelerator else "CPU"
        replicas = f"{group.replicas.min} to {group.replicas.max}"
        table.add_row(name, group.model, group.engine.kind, hardware, replicas)
    return table


def _print_diff(found: Diff) -> None:
    for change in found.serve:
        typer.echo(f"Serve: {_change(change)}")
    if found.serve:
        typer.echo("  all of Serve restarts: run `serve shutdown` first, then deploy\n")
    for application in found.applications:
        typer.echo(f"{application.name}: {application.effect.value}")
        for change in application.changes:
            typer.echo(f"  {_change(change)}")
        if application.note:
            typer.echo(f"  ({application.note})")
    if all(item.effect is Effect.UNCHANGED for item in found.applications) and not found.serve:
        typer.echo("nothing would change")


def _change(change: Change) -> str:
    return f"{change.path}: {_shown(change.path, change.old)} → {_shown(change.path, change.new)}"


def _shown(name: str, value: object) -> str:
    """Return the value as YAML may write it; what looks like a secret is masked."""
    if value is NOTHING:
        return repr(value)
    return json.dumps(_masked(name.rpartition(".")[2], value), ensure_ascii=False, default=str)


def _masked(key: str, value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _masked(str(name), item) for name, item in value.items()}
    if isinstance(value, str):
        value = _URL_PASSWORD.sub(rf"\1:{_MASK}", value)
    return _MASK if _SECRET.search(key) and value is not None else value


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    # Values are the user's: "[red]" in one of them is no markup.
    return Console(markup=False, highlight=False, emoji=False)
