"""`aibrix-ray serve`: a Ray of its own, the applications of a file, until Ctrl-C."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from aibrix_ray.cli.config import File, Settings, read_effective
from aibrix_ray.errors import AibrixRayError

if TYPE_CHECKING:
    from aibrix_ray.config import ParsedFile
    from aibrix_ray.deployments.local import LocalInstallation, Progress


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""
    app.command("serve")(serve)


def serve(
    file: File,
    settings: Settings = None,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for all models.")] = 1800.0,
) -> None:
    """Start a Ray of its own, deploy FILE on it, and serve until Ctrl-C.

    To deploy on a Ray cluster that runs already, use Ray's own command: serve run FILE.
    """
    parsed, _ = read_effective(file, settings or [])
    console = Console()
    _interrupt_on_signals()
    failure: AibrixRayError | None = None
    try:
        console.print("Starting Ray and Serve ...")
        from aibrix_ray.deployments.local import LocalInstallation

        with LocalInstallation(parsed.to_serve_dict(), dashboard=dashboard) as installation:
            try:
                _interrupt_on_signals()  # again: `ray.init` has put its own handlers in place
                _wait(installation, console, timeout)
                text = _ready_text(parsed, installation.ray_address)
                console.print(text, highlight=False, soft_wrap=True)
                threading.Event().wait()
            except AibrixRayError as error:
                failure = error
            finally:
                _ignore_further_signals()
                console.print("\nStopping ...")
    except KeyboardInterrupt:
        console.print("Stopped.")
    if failure is not None:
        raise failure


def _interrupt_on_signals() -> None:
    # A background job of a script inherits SIGINT ignored; Ctrl-C must work there too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _ignore_further_signals() -> None:
    # A second Ctrl-C in the middle of the clean-up would leave processes behind; it is bounded.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _wait(installation: LocalInstallation, console: Console, timeout_s: float) -> None:
    started_s = time.monotonic()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for progress in installation.wait_until_ready():
            elapsed_s = time.monotonic() - started_s
            live.update(_table(progress, elapsed_s))
            if elapsed_s > timeout_s:
                raise AibrixRayError(f"not ready after {timeout_s:g} s (--timeout)")
    console.print(f"Ready after {time.monotonic() - started_s:.0f} s.")


def _table(progress: list[Progress], elapsed_s: float) -> Table:
    table = Table(title=f"Deploying ({elapsed_s:.0f} s)", title_justify="left")
    for column in ("application", "status", "replicas", ""):
        table.add_column(column)
    for row in progress:
        table.add_row(row.application, row.status, row.replicas, row.message[:80])
    return table


def _ready_text(parsed: ParsedFile, ray_address: str) -> str:
    gateway = parsed.gateway
    if gateway is None:
        return "All applications run. Ctrl-C stops them."
    model = next(iter(parsed.models), "MODEL")
    question = {"model": model, "messages": [{"role": "user", "content": "What is aibrix_ray?"}]}
    host, port = gateway.host, gateway.port
    scheme = "http" if gateway.http.tls is None else "https"
    if gateway.listen == "serve":
        options = parsed.data.get("http_options") or {}
        host, port = options.get("host", "127.0.0.1"), options.get("port", 8000)
    url = f"{scheme}://{host}:{port}"
    return (
        f"\nServing on {url}/v1  (models: {', '.join(parsed.models)})\n\n"
        f"  curl {url}/v1/chat/completions \\\n"
        f"    -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(question)}'\n\n"
        f"  {_own_name()} chat --url {url}\n"
        f"  RAY_ADDRESS={ray_address} {_own_name()} status\n\nCtrl-C stops everything."
    )


def _own_name() -> str:
    return sys.argv[0] if "/" in sys.argv[0] else "aibrix-ray"
