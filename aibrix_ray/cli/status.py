"""`aibrix-ray status`: models, groups and replicas of a running cluster, with their load."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aibrix_ray.errors import AibrixRayError
from aibrix_ray.telemetry import wire
from aibrix_ray.telemetry.overview import GroupRow, ModelRow, ReplicaRow, build_overview

_INTERVAL_S = 1.0
_CALL_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 3.0
#: Tries of one second each; Ray's own default of 20 only makes a refusal late.
_CONNECT_TRIES = "3"


class NoCluster(AibrixRayError):
    """No Ray cluster was found, or nothing answers at its address."""


class ClusterRefused(AibrixRayError):
    """The cluster demands a token that we do not have."""


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""
    app.command("status")(status)


def status(
    watch: Annotated[
        bool, typer.Option("--watch/--once", help="Show it again every second until Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with --watch a line a second.")
    ] = False,
    address: Annotated[
        str, typer.Option(help="HOST:PORT of the head node; by default RAY_ADDRESS or this one.")
    ] = "auto",
) -> None:
    """Show the models, groups and replicas of a running cluster, and their load."""
    connect(address)
    from aibrix_ray.telemetry.actor import get_telemetry

    def look() -> tuple[ModelRow, ...]:
        return _look(get_telemetry())

    if as_json:
        _print_json(look, watch=watch)
    elif watch:
        _watch(look)
    else:
        Console().print(render(look()))


def connect(address: str = "auto") -> None:
    """Connect this process to a Ray cluster, quietly.

    Raises:
        NoCluster: there is none; says how to start or name one.
        ClusterRefused: it refused our token; says where the token belongs.
    """
    # Read by Ray when it is imported, hence the late import.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", _CONNECT_TRIES)
    if (Path.home() / ".ray/auth_token").exists():
        # Ray makes the token at its first start, but only who starts a cluster uses it by itself.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    from aibrix_ray.telemetry.detached import NAMESPACE

    found = _find(address)
    said = ""
    try:
        with _quiet_stderr() as read_stderr:
            try:
                ray.init(
                    address=address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            finally:
                said = read_stderr()
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        if isinstance(error, ray.exceptions.AuthenticationError) or "Unauthenticated" in said:
            raise ClusterRefused(
                f"the Ray cluster at {found} refused our authentication token; set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, or the file "
                "~/.ray/auth_token) to the token of its head node, which `ray get-auth-token` "
                "prints there"
            ) from error
        raise NoCluster(f"cannot connect to the Ray cluster at {found}: {error}") from error


def _find(address: str) -> str:
    """Return HOST:PORT of a cluster whose port answers: Ray itself would wait for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found: str | None = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError):
        found = None
    if found is None:
        raise NoCluster(
            f"no Ray cluster found ({_sought(address)}); start one with `aibrix-ray serve FILE` "
            "or `ray start --head`, or name a running one: --address HOST:6379"
        )
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise NoCluster(
            f"no Ray cluster answers at {found} ({_sought(address)}): {error}; name one that runs "
            "(--address HOST:6379), or make Ray forget one that has ended (`ray stop`)"
        ) from error
    return found


def _sought(address: str) -> str:
    named = os.environ.get("RAY_ADDRESS")
    if named:
        return f"RAY_ADDRESS={named}"
    return "looked on this machine" if address == "auto" else f"--address {address}"


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[Callable[[], str]]:
    """Catch what is written to stderr, by C++ too; yields a function that reads it."""
    with tempfile.TemporaryFile() as caught:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)

        def read() -> str:
            caught.seek(0)
            return caught.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _look(telemetry: Any) -> tuple[ModelRow, ...]:
    import ray

    whole, groups, replicas = ray.get(
        [
            telemetry.snapshot.remote(),
            telemetry.windows.remote(),
            telemetry.replica_windows.remote(),
        ],
        timeout=_CALL_TIMEOUT_S,
    )
    return build_overview(
        wire.decode_update(whole), wire.decode_windows(groups), wire.decode_windows(replicas)
    )


def _watch(look: Callable[[], tuple[ModelRow, ...]]) -> None:
    from aibrix_ray.telemetry.detached import UNREACHABLE

    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False) as live:
        while True:
            try:
                shown: RenderableType = render(look())
            except (*UNREACHABLE, AibrixRayError) as error:
                shown = Text(f"no figures now, trying again: {error}".split("\n")[0], style="red")
            live.update(shown, refresh=True)
            time.sleep(_INTERVAL_S)


def _print_json(look: Callable[[], tuple[ModelRow, ...]], *, watch: bool) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            typer.echo(msgspec.json.encode({"models": look()}))
            if not watch:
                return
            time.sleep(_INTERVAL_S)


def render(models: Sequence[ModelRow]) -> RenderableType:
    """Return the table of all models."""
    if not models:
        return Text("no models yet: no replica group has been deployed")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model / group / replica", overflow="fold")
    for heading in ("replicas", "running", "waiting", "KV", "tokens/s in", "out", "prefix hits"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("engine since", justify="right", no_wrap=True)
    table.add_column("heard", justify="right", no_wrap=True)
    for model in models:
        table.add_row(Text(model.name, style="bold"), "", str(model.running), str(model.waiting))
        for group in model.groups:
            _add_group(table, group)
    ready = sum(m.ready for m in models)
    return Group(table, Text(f"{len(models)} models, {ready} replicas ready", style="dim"))


def _add_group(table: Table, group: GroupRow) -> None:
    what = " ".join(part for part in (group.engine, group.accelerator) if part)
    low, high = _or_dash(group.min_replicas), _or_dash(group.max_replicas)
    table.add_row(
        Text.assemble("  ", (group.name, "cyan"), (f"  {what}" if what else "", "dim")),
        f"{group.ready} ({low}-{high})",
        *_load(group, group.kv_usage),
    )
    for replica in group.replicas:
        table.add_row(
            Text(f"    {replica.replica_id}"),
            Text("draining", style="yellow") if replica.draining else Text("ready", style="green"),
            *_load(replica, replica.kv_usage),
            _duration(replica.epoch_age_s),
            _duration(replica.age_s),
        )


def _load(row: GroupRow | ReplicaRow, kv_usage: float | None) -> tuple[str, ...]:
    return (
        str(row.running),
        str(row.waiting),
        _percent(kv_usage),
        _rate(row.prompt_tokens_per_s),
        _rate(row.generation_tokens_per_s),
        _percent(row.prefix_hit_rate),
    )


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _rate(per_s: float | None) -> str:
    return "-" if per_s is None else f"{per_s:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
