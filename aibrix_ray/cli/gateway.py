"""`aibrix-ray gateway`: one gateway without Ray, in front of backends that are named."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""

    @app.command("gateway")
    def gateway(
        backend: Annotated[
            list[str],
            typer.Option(help="MODEL=uds:PATH or MODEL=http://HOST:PORT; give it several times."),
        ],
        host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
        policy: Annotated[str, typer.Option(help="Routing policy.")] = "least-request",
    ) -> None:
        """Run one gateway in front of OpenAI-compatible servers that run already (no Ray)."""
        import uvloop

        from aibrix_ray.config import parse_gateway_args, parse_gateway_user_config
        from aibrix_ray.dataplane.standalone import parse_backend, serve_standalone

        args = parse_gateway_args({"host": host, "port": port}, path="--")
        user_config = parse_gateway_user_config({"routing": {"policy": policy}}, path="--")
        backends = [parse_backend(text) for text in backend]
        typer.echo(f"gateway on http://{host}:{port}, {len(backends)} backends")
        uvloop.run(serve_standalone(args, user_config, backends))
