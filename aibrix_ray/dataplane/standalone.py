"""A gateway without Ray, in front of backends that are named on the command line.

The same application on the same server settings as the gateway inside a Serve replica; what is
missing is what Serve and Telemetry bring: membership that follows the replicas, and their state.
For backends that somebody else runs, and for measuring the data plane alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from aibrix_ray.asgi import tcp_socket
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane.access import local_limiter
from aibrix_ray.dataplane.app import GatewayApp
from aibrix_ray.dataplane.channel import Address
from aibrix_ray.dataplane.fleet import Member
from aibrix_ray.dataplane.listener import make_server
from aibrix_ray.dataplane.rim import Rim
from aibrix_ray.errors import ConfigError
from aibrix_ray.limiter import GatewayLimiter
from aibrix_ray.types import GroupInfo


def parse_backend(text: str) -> tuple[str, Address]:
    """Read `MODEL=uds:PATH` or `MODEL=http://HOST:PORT`.

    Raises:
        ConfigError: it is neither.
    """
    model, _, where = text.partition("=")
    if model and where.startswith("uds:") and len(where) > 4:
        return model, Address(uds=where[4:])
    with contextlib.suppress(ValueError):  # a port that is none, an open bracket
        url = urlsplit(where)
        if model and url.scheme == "http" and url.hostname and url.port:
            return model, Address(host=url.hostname, port=url.port)
    raise ConfigError(
        path="--backend",
        value=text,
        expected="MODEL=uds:PATH or MODEL=http://HOST:PORT",
    )


def apply_backends(app: GatewayApp, backends: Sequence[tuple[str, Address]]) -> None:
    """Make the backends the whole fleet of `app`, one group a model."""
    by_model: dict[str, list[Address]] = {}
    for model, address in backends:
        by_model.setdefault(model, []).append(address)
    app.fleet.set_groups(GroupInfo(name=model, model=model) for model in by_model)
    for model, addresses in by_model.items():
        members = [Member(f"{model}-{i}", address) for i, address in enumerate(addresses)]
        app.fleet.set_members(model, members)
    app.ready = True


def make_limiter(args: GatewayArgs) -> GatewayLimiter:
    """Return the limiter of a gateway without Ray: it counts for itself, or in a Redis.

    Raises:
        ConfigError: `auth.limiter` is no URL of Redis.
    """
    if args.auth.limiter is None:
        return local_limiter()
    # Not at the top: redis-py takes a while to load, and most gateways have no use for it.
    from aibrix_ray.limiter.redis_authority import RedisAuthority

    return GatewayLimiter(uuid.uuid4().hex, RedisAuthority(args.auth.limiter))


async def serve_standalone(
    args: GatewayArgs, user_config: GatewayUserConfig, backends: Sequence[tuple[str, Address]]
) -> None:
    """Serve until SIGINT or SIGTERM."""
    app = GatewayApp(args, user_config, make_limiter=lambda: make_limiter(args))
    apply_backends(app, backends)
    rim = Rim(app, args.http)
    server = make_server(rim.app, args)
    await app.start()
    sock = tcp_socket(args.host, args.port, reuse_port=True)
    app.metrics.join("standalone", sock.getsockname()[1])
    await server.listen(sock)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await server.close()
    await app.close()
    await rim.close()
