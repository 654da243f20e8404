"""The gateway replica: the data plane's application on a socket of its own, fed by Serve and Ray.

What happens when it dies: its own connections break, which official clients retry; the port stays
open through its siblings on the node, and Serve starts a new one. One that hangs still gets a share
of new connections from the kernel; its siblings end it within ten seconds (`PortClaim`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

from aibrix_ray.asgi import AsgiApp, tcp_socket
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.config.parse import parse_gateway_user_config
from aibrix_ray.dataplane import GatewayApp
from aibrix_ray.dataplane.listener import make_server
from aibrix_ray.dataplane.port import PortClaim
from aibrix_ray.dataplane.rim import Rim
from aibrix_ray.deployments.calls import InProcessCall
from aibrix_ray.deployments.groups import keep_groups_known
from aibrix_ray.deployments.membership import Membership
from aibrix_ray.engines.guard import exit_with_raylet
from aibrix_ray.errors import ConfigError
from aibrix_ray.limiter import Authority, GatewayLimiter
from aibrix_ray.limiter.actor import ActorAuthority
from aibrix_ray.runtime_dir import remove_stale
from aibrix_ray.telemetry.client import TelemetryFollower
from aibrix_ray.telemetry.store import Update

logger = logging.getLogger(__name__)

_PORT_CHECK_S = 1.0
#: While draining, open connections get this long to send their next request, which is answered
#: with `Connection: close`; idle ones are closed after it.
_IDLE_GRACE_S = 3.0
#: Telemetry answers every two seconds; what has not for so long is away.
_TELEMETRY_LOST_S = 10.0


class GatewayReplica:
    """Serve's user class of the gateway application."""

    async def __init__(self, args: GatewayArgs) -> None:  # type: ignore[misc]
        context = serve.get_replica_context()
        self._args = args
        self._application = context.app_name
        self._name = name = context.replica_id.unique_id
        self._app = GatewayApp(
            args,
            GatewayUserConfig(),
            name=name,
            seed=zlib.crc32(name.encode()),
            make_limiter=self._make_limiter,
        )
        self._rim = Rim(self._app, args.http)
        self._server = make_server(self._rim.app, args)
        self._follower = TelemetryFollower(self._on_update)
        self._app.metrics.watch("telemetry", self._telemetry_is_reachable)
        self._port_problem: ConfigError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        remove_stale()
        exit_with_raylet()
        node_id = ray.get_runtime_context().get_node_id()
        self._membership = Membership(node_id, self._app.fleet.set_members)
        self._groups_changed = asyncio.Event()
        self._follower.start()
        await self._app.start()
        self._tasks.append(asyncio.create_task(self._follow_groups()))
        self._tasks.append(asyncio.create_task(keep_groups_known()))
        await self._follower.ready.wait()
        if args.listen == "own":
            await self._listen()
        self._app.ready = True
        logger.info("gateway %s serves on port %s", context.replica_id.unique_id, args.port)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new run-time settings in place; nothing restarts.

        Raises:
            ConfigError: a setting is wrong; the old ones stay.
        """
        self._app.reconfigure(parse_gateway_user_config(user_config))

    async def check_health(self) -> None:
        """Raise if this gateway must be replaced: a stranger is on its port."""
        if self._port_problem is not None:
            raise self._port_problem

    async def __serve_build_asgi_app__(self) -> AsgiApp:
        """Return the application for `gateway.listen: serve`."""
        return self._rim.app

    # Python handles; see deployments/handles.py

    async def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one plain request. Raises `ApiError` as HTTP clients get it."""
        return await InProcessCall(self._app, path, body).answer()

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a streamed answer. Raises `ApiError`."""
        async for event in InProcessCall(self._app, path, {**body, "stream": True}).events():
            yield event

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a chat completion."""
        return await self.call("/v1/chat/completions", body)

    async def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a completion."""
        return await self.call("/v1/completions", body)

    async def embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer an embedding request."""
        return await self.call("/v1/embeddings", body)

    async def statistics(self) -> dict[str, Any]:
        """Return what this gateway sees; for tests and `aibrix-ray status`."""
        models = self._app.pipeline.models
        return {
            "pid": os.getpid(),
            "in_flight": len(self._app.forwarder.under_way),
            "models": {name: [r.replica_id for r in m.ready] for name, m in models.items()},
            "held": {name: model.held for name, model in models.items()},
        }

    async def __del__(self) -> None:
        """Drain: leave the port to the siblings, answer what is under way, close idle ones last."""
        if not self._app.ready:
            return
        deadline_s = time.monotonic() + self._args.drain_timeout_s
        self._app.draining = True
        await self._server.stop_listening()
        self._server.drain_connections()
        idle_until_s = min(deadline_s, time.monotonic() + _IDLE_GRACE_S)
        while time.monotonic() < deadline_s:
            if time.monotonic() >= idle_until_s:
                self._server.close_idle_connections()
            if not self._app.forwarder.under_way and not self._server.connections:
                break
            await asyncio.sleep(0.05)
        for task in self._tasks:
            task.cancel()
        await self._follower.stop()
        await self._server.close()
        await self._app.close()
        await self._rim.close()
        if hasattr(self, "_claim"):
            self._claim.release()

    # private

    def _make_limiter(self) -> GatewayLimiter:
        args = self._args
        authority: Authority
        if args.auth.limiter is not None:
            from aibrix_ray.limiter.redis_authority import RedisAuthority

            authority = RedisAuthority(args.auth.limiter)
        else:
            authority = ActorAuthority()
        nodes = sum(node["Alive"] for node in ray.nodes())
        return GatewayLimiter(self._name, authority, gateways=args.per_node * max(1, nodes))

    def _telemetry_is_reachable(self) -> bool:
        return self._follower.age_s(time.monotonic()) < _TELEMETRY_LOST_S

    async def _listen(self) -> None:
        sock = tcp_socket(self._args.host, self._args.port, reuse_port=True)
        self._claim = PortClaim(self._application, sock)
        try:
            self._claim.check()
        except ConfigError:
            self._claim.release()
            sock.close()
            raise
        self._app.metrics.join(self._application, self._args.port)
        await self._server.listen(sock)
        self._tasks.append(asyncio.create_task(self._watch_port()))

    async def _watch_port(self) -> None:
        while True:
            await asyncio.sleep(_PORT_CHECK_S)
            self._claim.beat()
            for pid in self._claim.hung_siblings():
                logger.error("gateway process %s hangs on port %s; ending it", pid, self._args.port)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self._claim.check()
            except ConfigError as error:
                logger.error("%s", error)
                self._port_problem = error
                await self._server.stop_listening()
                return

    def _on_update(self, update: Update) -> None:
        if update.groups is not None:
            self._app.fleet.set_groups(update.groups)
            self._groups_changed.set()
        now_s = time.monotonic()
        for stats, age_s in zip(update.replicas, update.ages_s, strict=True):
            self._app.fleet.apply_stats((stats,), now_s - age_s)

    async def _follow_groups(self) -> None:
        while True:
            await self._groups_changed.wait()
            self._groups_changed.clear()
            try:
                await self._membership.follow_groups(self._app.fleet.groups)
            except Exception:
                logger.exception("cannot follow the groups; trying again")
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1.0)
                self._groups_changed.set()
