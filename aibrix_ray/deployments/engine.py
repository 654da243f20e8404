"""The engine replica: one engine, its private listener, its reports, its orderly end.

What happens when it dies: SIGKILL of this process takes the engine's processes with it (they watch
their parent) and costs every request it served one attempt: gateways go on elsewhere, with streams
from the tokens that had come (decision 12). Serve starts a new one. When the raylet of its node
dies, the replica ends itself within seconds instead of serving on unsupervised.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import time
import uuid
from typing import Any

import ray
from ray import serve

from aibrix_ray.asgi import HttpServer, tcp_socket, unix_socket
from aibrix_ray.config.group import GroupArgs
from aibrix_ray.dataplane import FORWARDED_PATHS
from aibrix_ray.deployments.groups import group_info
from aibrix_ray.engines import Engine, ReplicaIdentity
from aibrix_ray.engines.answers import answers_of
from aibrix_ray.engines.factory import make_engine
from aibrix_ray.engines.guard import exit_with_raylet, remove_at_end
from aibrix_ray.engines.meta import REPLICA_LIMITS, ReplicaApp, TokenGuard
from aibrix_ray.engines.progress import ProgressWatch
from aibrix_ray.runtime_dir import remove_stale, socket_path
from aibrix_ray.telemetry.actor import ensure_telemetry
from aibrix_ray.telemetry.reporter import ReplicaReporting
from aibrix_ray.types import GroupInfo, ReplicaStats

logger = logging.getLogger(__name__)

#: A draining replica goes on accepting for this long: gateways hear of it meanwhile.
_DRAIN_NOTICE_S = 1.0
#: Gateways keep connections for ever; a replica must not close an idle one under a request.
_KEEP_ALIVE_S = 24 * 3600.0
#: An engine that holds requests and moves none of them for so long hangs, whatever its pings say.
_STALLED_S = 300.0


class EngineReplica:
    """Serve's user class of a replica group."""

    async def __init__(self, args: GroupArgs) -> None:  # type: ignore[misc]
        context = serve.get_replica_context()
        self._args = args
        info = group_info(context.app_name, args, created_s=time.time())
        self._identity = ReplicaIdentity(
            replica_id=f"{info.name}-{context.replica_id.unique_id}",
            group=info.name,
            model=args.model,
            epoch=uuid.uuid4().hex[:16],
        )
        self._draining_published = False
        self._progress = ProgressWatch(_STALLED_S)
        remove_stale()
        self._uds = socket_path(self._identity.replica_id)
        remove_at_end(self._uds)
        exit_with_raylet()
        self._engine: Engine = make_engine(self._identity, args)
        try:
            # Before the model is loaded, so that requests for it are held instead of refused.
            await asyncio.to_thread(_announce, info)
            await self._engine.start()
            await self._serve()
        except BaseException:
            await self._engine.stop()
            raise
        self._reporting = ReplicaReporting()
        self._reporting.start(self._stats, info)
        logger.info("replica %s is ready", self._identity.replica_id)

    async def _serve(self) -> None:
        answers = answers_of(self._engine.openai_app(), self._args.engine)
        self._app = ReplicaApp(answers, paths=FORWARDED_PATHS)
        self._server = HttpServer(self._app, keep_alive_s=_KEEP_ALIVE_S, limits=REPLICA_LIMITS)
        await self._server.listen(unix_socket(self._uds))
        # The port is bound, and so known, from the start; it listens once there is another node.
        self._token = uuid.uuid4().hex
        self._host = ray.util.get_node_ip_address()
        self._tcp = tcp_socket(self._host, 0)
        self._port: int = self._tcp.getsockname()[1]
        self._tcp_server = HttpServer(
            TokenGuard(self._app, self._token),
            keep_alive_s=_KEEP_ALIVE_S,
            limits=REPLICA_LIMITS,
        )
        self._tcp_task = asyncio.create_task(self._listen_for_other_nodes())

    async def _listen_for_other_nodes(self) -> None:
        while True:
            with contextlib.suppress(ray.exceptions.RayError):
                nodes = await asyncio.to_thread(ray.nodes)
                if sum(1 for node in nodes if node["Alive"]) > 1:
                    await self._tcp_server.listen(self._tcp)
                    return
            await asyncio.sleep(2.0)

    def record_replica_metadata(self) -> dict[str, Any]:
        """Publish where the listener is; Serve hands it to every gateway's handle."""
        return {
            "replica_id": self._identity.replica_id,
            "epoch": self._identity.epoch,
            "uds": self._uds,
            "host": self._host,
            "port": self._port,
            "token": self._token,
        }

    async def check_health(self) -> None:
        """Raise if the engine cannot serve; Serve then replaces this replica."""
        await self._engine.check_health()
        self._progress.check(self._stats(), time.monotonic())

    async def statistics(self) -> ReplicaStats:
        """Return the engine's figures of now."""
        return self._stats()

    async def __del__(self) -> None:
        """Drain: be known as draining, finish what is under way, free the engine."""
        if not hasattr(self, "_reporting"):
            return
        deadline_s = time.monotonic() + self._args.drain_timeout_s
        self._draining_published = True
        await self._reporting.flush()
        if self._app.in_flight:
            await asyncio.sleep(min(_DRAIN_NOTICE_S, self._args.drain_timeout_s))
        self._app.draining = True
        self._server.drain_connections()
        self._tcp_server.drain_connections()
        while self._app.in_flight and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)
        self._tcp_task.cancel()
        await self._server.close()
        await self._tcp_server.close()
        await self._reporting.stop()
        await self._engine.stop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._uds)
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)

    def _stats(self) -> ReplicaStats:
        stats = self._engine.stats()
        return dataclasses.replace(stats, draining=True) if self._draining_published else stats


def _announce(info: GroupInfo) -> None:
    try:
        ray.get(ensure_telemetry().register_group.remote(info), timeout=10.0)
    except (ray.exceptions.RayError, TimeoutError) as error:
        # The reports say it again; a model that is late in the list is no reason not to load it.
        logger.warning("cannot announce group %s yet: %s", info.name, error)
