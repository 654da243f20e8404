"""A Ray of its own with Serve on it, for `aibrix-ray serve`: started, watched, taken down whole.

Everything runs on loopback. Taking down never takes longer than `STOP_S`: what has not ended by
then is killed, and only processes of this Ray session are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from aibrix_ray.engines.guard import descendants
from aibrix_ray.errors import AibrixRayError
from aibrix_ray.runtime_dir import remove_stale, start_time

#: Serve gets this long for an orderly end; the rest of ten seconds is for Ray itself.
_SERVE_STOP_S = 6.0


class DeployFailed(AibrixRayError):
    """An application cannot run; carries Serve's reason."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one application is: Serve's status and its ready replicas by deployment."""

    application: str
    status: str
    message: str
    replicas: str


class LocalInstallation:
    """One Ray and the applications of one file on it. Use as a context manager."""

    def __init__(self, config: dict[str, Any], *, dashboard: bool = True) -> None:
        self._config = ServeDeploySchema.model_validate(config)
        self._dashboard = dashboard

    def __enter__(self) -> LocalInstallation:
        """Start Ray and Serve and hand the applications over; returns before they are ready."""
        # Serve's logger would write over the progress display; the files in Ray's folder have it.
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
        _start_ray(dashboard=self._dashboard)
        from ray.serve._private import api

        client = api.serve_start(
            http_options=self._config.http_options.model_dump(),
            proxy_location=self._config.proxy_location,
            grpc_options=gRPCOptions(**self._config.grpc_options.model_dump()),
            controller_options=self._config.controller_options,
        )
        client.deploy_apps(self._config, _blocking=False)
        return self

    def __exit__(self, *exc: object) -> None:
        """Take everything down."""
        children = _identities(descendants(os.getpid()))
        _bounded(serve.shutdown, _SERVE_STOP_S)
        children |= _identities(descendants(os.getpid()))
        _bounded(ray.shutdown, 3.0)
        _kill_left(children)
        remove_stale()

    @property
    def ray_address(self) -> str:
        """Where this Ray is; for `RAY_ADDRESS` of other commands."""
        address: str = ray.get_runtime_context().gcs_address
        return address

    def progress(self) -> list[Progress]:
        """Return where each application stands.

        Raises:
            DeployFailed: one of them failed for good.
        """
        found = []
        for name, application in serve.status().applications.items():
            status = str(application.status.value)
            deployments = application.deployments.values()
            ready = sum(d.replica_states.get("RUNNING", 0) for d in deployments)
            count = sum(sum(d.replica_states.values()) for d in deployments)
            # The application's own message only says which deployment failed, not why.
            reasons = [d.message for d in deployments if d.status.value != "HEALTHY" and d.message]
            message = (reasons or [application.message])[0]
            if status == "DEPLOY_FAILED":
                raise DeployFailed(f"application {name} cannot run: {_last_line(message)}")
            found.append(Progress(name, status, message, f"{ready}/{count}"))
        return found

    def wait_until_ready(self, *, period_s: float = 0.5) -> Iterator[list[Progress]]:
        """Yield the progress until every application runs.

        Raises:
            DeployFailed: one of them failed for good.
        """
        while True:
            progress = self.progress()
            yield progress
            if progress and all(p.status == "RUNNING" for p in progress):
                return
            time.sleep(period_s)


def _start_ray(*, dashboard: bool) -> None:
    # Ray gives its daemons 30 s, whatever the machine is busy with; a second try finds them cached.
    for attempt in (1, 2):
        try:
            ray.init(
                address="local",
                namespace="serve",
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                _node_ip_address="127.0.0.1",
                log_to_driver=False,
                configure_logging=True,
                logging_level="ERROR",
            )
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                raise DeployFailed(f"Ray does not start on this machine: {error}") from error


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or ["no reason given"])[-1]


def _bounded(action: Any, seconds: float) -> None:
    """Run an action that may hang; give it up after so long."""

    def run() -> None:
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)


def _identities(pids: Iterable[int]) -> set[tuple[int, str]]:
    """Return (pid, start time) of each: a pid alone may be somebody else's a moment later."""
    return {(pid, start_time(pid)) for pid in pids}


def _kill_left(processes: set[tuple[int, str]]) -> None:
    for pid, started in processes:
        if start_time(pid) == started:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
