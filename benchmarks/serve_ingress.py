"""A gateway as one writes it with Ray Serve alone: a row of the gateway benchmark.

One ingress deployment of one replica (Starlette, the HTTP client is aiohttp) that forwards to the
backends in turn, streams piece by piece. Serve's HAProxy stands before it and sends the connection
to the replica itself, which is Serve's fastest way in; that is chosen by environment variables that
Ray reads when it starts, see `benchmarks/ray_env.py`.

    python benchmarks/serve_ingress.py --port 8000 --backend http://127.0.0.1:9101
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import ray
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def forwarding_app(backends: Sequence[str]) -> Starlette:
    """Return the application that forwards every POST below /v1 to the backends in turn."""
    turns = itertools.cycle(backends)
    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: Request) -> Response:
        if not sessions:
            # Made on the loop that uses it. No limit: a load has as many connections as it likes.
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        url = next(turns) + request.url.path
        headers = {"Content-Type": request.headers["content-type"]}
        answer = await sessions[0].post(url, data=await request.body(), headers=headers)
        kind = answer.headers["content-type"]
        if kind.startswith("text/event-stream"):
            return StreamingResponse(_pieces(answer), answer.status, media_type=kind)
        async with answer:
            return Response(await answer.read(), answer.status, media_type=kind)

    return Starlette(routes=[Route("/v1/{rest:path}", forward, methods=["POST"])])


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for piece in answer.content.iter_any():
            yield piece


def ingress(backends: Sequence[str]) -> Any:
    """Return the Serve application: one replica that takes whatever comes."""

    class Ingress:
        """Holds the application."""

    holder: Any = serve.ingress(lambda: forwarding_app(backends))(Ingress)
    options = {"max_ongoing_requests": 100_000, "ray_actor_options": {"num_cpus": 0}}
    return serve.deployment(num_replicas=1, **options)(holder).bind()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="A Serve ingress that forwards.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--backend", action="append", required=True, help="http://HOST:PORT")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    ray.init(address="local", include_dashboard=False, log_to_driver=True)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": args.port})
        serve.run(ingress(args.backend))
        signal.pause()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
