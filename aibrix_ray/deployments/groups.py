"""Which replica groups the cluster's Serve configuration names, whether they have replicas or not.

A builder is not told the name of its application, and a group at zero replicas has no process that
could register it. So the gateways read Serve's own record of the deployed files now and then, and
bring Telemetry up to date: groups that nobody has announced yet, groups whose application is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.serve.context import _get_global_client

from aibrix_ray.config.group import GroupArgs
from aibrix_ray.config.parse import parse_group_args
from aibrix_ray.errors import AibrixRayError
from aibrix_ray.telemetry.actor import get_telemetry
from aibrix_ray.types import GroupInfo

logger = logging.getLogger(__name__)

GROUP_IMPORT_PATH = "aibrix_ray:replica_group"
PERIOD_S = 3.0


def group_info(name: str, args: GroupArgs, *, created_s: float) -> GroupInfo:
    """Return what the group tells the rest of the installation about itself."""
    return GroupInfo(
        name=name,
        model=args.model,
        accelerator=args.accelerator or "",
        cost_per_hour=args.cost_per_hour,
        max_outstanding=args.max_outstanding,
        min_replicas=args.replicas.min,
        max_replicas=args.replicas.max,
        engine=args.engine.kind,
        created_s=created_s,
        labels=dict(args.labels),
    )


async def keep_groups_known() -> None:
    """Bring Telemetry up to date for ever; failures are tried again at the next period."""
    while True:
        try:
            await asyncio.to_thread(_reconcile)
        except (ray.exceptions.RayError, AibrixRayError, TimeoutError) as error:
            logger.warning("cannot read Serve's applications: %s", error)
        await asyncio.sleep(PERIOD_S)


def _reconcile() -> None:
    controller = _get_global_client()._controller
    details = ray.get(controller.get_serve_instance_details.remote(), timeout=10.0)
    applications: dict[str, Any] = details.get("applications", {})
    telemetry = get_telemetry()
    for name, application in applications.items():
        info = _group_of(name, application)
        if info is not None:
            ray.get(telemetry.register_group.remote(info), timeout=10.0)
    ray.get(telemetry.applications_alive.remote(list(applications)), timeout=10.0)


def _group_of(name: str, application: dict[str, Any]) -> GroupInfo | None:
    """Return the group of an application that was deployed from a file; else `None`."""
    config = application.get("deployed_app_config") or {}
    if config.get("import_path") != GROUP_IMPORT_PATH:
        return None
    try:
        args = parse_group_args(config.get("args") or {})
    except AibrixRayError as error:
        logger.warning("application %s is no group that could run: %s", name, error)
        return None
    return group_info(name, args, created_s=application.get("last_deployed_time_s", 0.0))
