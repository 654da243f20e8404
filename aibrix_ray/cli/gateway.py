"""`aibrix-ray gateway`: one gateway without Ray, in front of backends that are named."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from aibrix_ray.cli import print_error
from aibrix_ray.cli.config import policy_problems, read_text
from aibrix_ray.config import (
    GatewayArgs,
    GatewayFlag,
    GatewayUserConfig,
    check_gateway,
    read_gateway_file,
)
from aibrix_ray.errors import ConfigError

_USAGE_ERROR = 2
#: flag → the field that it sets, as `--set gateway.…` of other commands would.
_FLAGS = {
    "--host": ("host",),
    "--port": ("port",),
    "--keys": ("auth", "keys"),
    "--store": ("auth", "store"),
    "--open-to-network": ("auth", "open_to_network"),
    "--policy": ("user_config", "routing", "policy"),
}

Backends = Annotated[
    list[str],
    typer.Option(
        "--backend", help="MODEL=uds:PATH or MODEL=http://HOST:PORT; give it several times."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML or JSON file with the keys args and user_config, as the gateway's application "
        "of a Serve file has them. Precedence: flag > environment (AIBRIX_RAY__GATEWAY__PATH) > "
        "file > default.",
        metavar="FILE",
    ),
]
Host = Annotated[
    str | None, typer.Option("--host", help="Address to listen on; default: 127.0.0.1.")
]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on; default: 8000.")]
Policy = Annotated[
    str | None, typer.Option("--policy", help="Routing policy; default: least-request.")
]
AskForKeys = Annotated[
    bool | None,
    typer.Option("--keys/--no-keys", help="Ask for API keys (`aibrix-ray keys create`)."),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Store of tenants and keys, as a URL; stronger than AIBRIX_RAY_STORE.",
        metavar="URL",
    ),
]
OpenToNetwork = Annotated[
    bool | None,
    typer.Option(
        "--open-to-network/--no-open-to-network",
        help="Serve an address that others can reach without asking for keys.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""
    app.command("gateway")(gateway)


def gateway(
    backend: Backends,
    config: Config = None,
    host: Host = None,
    port: Port = None,
    policy: Policy = None,
    keys: AskForKeys = None,
    store: Store = None,
    open_to_network: OpenToNetwork = None,
) -> None:
    """Run one gateway in front of OpenAI-compatible servers that run already (no Ray)."""
    import uvloop

    from aibrix_ray.dataplane.standalone import parse_backend, serve_standalone

    backends = [parse_backend(text) for text in backend]
    values = (host, port, keys, store, open_to_network, policy)
    flags = [
        GatewayFlag(name if value is not False else f"--no-{name[2:]}", field, value)
        for (name, field), value in zip(_FLAGS.items(), values, strict=True)
        if value is not None  # not given: what the environment or the file says counts
    ]
    args, user_config = _effective(config, flags, models={model for model, _ in backends})
    if store is not None:
        _take_store(store)
    scheme = "http" if args.http.tls is None else "https"
    typer.echo(f"gateway on {scheme}://{args.host}:{args.port}, {len(backends)} backends")
    uvloop.run(serve_standalone(args, user_config, backends))


def _effective(
    file: Path | None, flags: list[GatewayFlag], *, models: Collection[str]
) -> tuple[GatewayArgs, GatewayUserConfig]:
    """Return what file, environment and flags say together.

    Prints every problem and ends the command with exit code 2 if there are any.

    Raises:
        ConfigError: the file cannot be read at all.
    """
    data = {} if file is None else _read(file)
    found, problems = check_gateway(data, os.environ, flags, models=models)
    if found is not None:
        problems = tuple(policy_problems(found[1], base="user_config"))
    for problem in problems:
        print_error(problem)
    if found is None or problems:
        raise typer.Exit(_USAGE_ERROR)
    return found


def _read(file: Path) -> dict[str, object]:
    text = read_text(file, path="--config")
    try:
        return dict(read_gateway_file(text, is_json=file.suffix.lower() == ".json"))
    except ConfigError as error:
        raise ConfigError(
            path=f"{file}: {error.path}",
            value=error.value,
            expected=error.expected,
            hint=error.hint,
        ) from error


def _take_store(flag: str) -> None:
    """Check the store of the flag, and let no weaker one stand in its way in this process."""
    # Not at the top: SQLAlchemy takes a while to load, and `--help` must answer at once.
    from aibrix_ray.tenants import ENVIRONMENT, store_url

    store_url(flag=flag)
    os.environ.pop(ENVIRONMENT, None)
