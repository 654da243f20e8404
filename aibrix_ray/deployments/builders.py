"""What the YAML's `import_path` names: `aibrix_ray:gateway` and `aibrix_ray:replica_group`.

Both take their `args:` as plain data, check them and return a Serve application. Everything that
Serve must be told about our own sockets, drains and counts is told here.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from aibrix_ray.config.gateway import SHUTDOWN_MARGIN_S, GatewayArgs
from aibrix_ray.config.group import GroupArgs
from aibrix_ray.config.parse import parse_gateway_args, parse_group_args
from aibrix_ray.deployments.counts import FixedReplicas, GatewaysPerNode
from aibrix_ray.deployments.membership import GROUP_DEPLOYMENT
from aibrix_ray.deployments.router import MembershipRouter

logger = logging.getLogger(__name__)

#: Serve gives a replica up after three failed checks in a row.
_HEALTH = {"health_check_period_s": 1.0, "health_check_timeout_s": 3.0}
_UNLIMITED = 100_000
_MAX_NODES = 10_000


def gateway(args: dict[str, Any]) -> Application:
    """Build the gateway application from its `args:`.

    Raises:
        ConfigError: names the field, the value and the fix.
        VersionError: Ray is outside of the tested range.
    """
    from aibrix_ray.deployments.gateway import GatewayReplica
    from aibrix_ray.engines.versions import check_ray
    from aibrix_ray.telemetry.actor import ensure_telemetry

    check_ray()
    parsed = parse_gateway_args(args)
    ensure_telemetry()
    kind: Any = GatewayReplica if parsed.listen == "own" else serve.ingress()(GatewayReplica)
    deployment = serve.deployment(kind).options(
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_UNLIMITED,
        # Serve counts only requests that came through it, none of ours: it need not wait.
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=parsed.drain_timeout_s + SHUTDOWN_MARGIN_S,
        max_surge_percent=100,
        user_config={},
        **_HEALTH,
        **_gateway_count(parsed),
    )
    application: Application = deployment.bind(parsed)
    return application


def replica_group(args: dict[str, Any]) -> Application:
    """Build the application of one replica group from its `args:`.

    Raises:
        ConfigError, VersionError: as for `gateway`.
    """
    from aibrix_ray.deployments.engine import EngineReplica
    from aibrix_ray.engines.versions import check_ray
    from aibrix_ray.telemetry.actor import ensure_telemetry

    check_ray()
    parsed = parse_group_args(args)
    if parsed.replicas.max > max(1, parsed.replicas.min):
        logger.warning(
            "%s: replicas.max has no effect yet (no autoscaler in this release); %s run",
            parsed.model,
            parsed.replicas.min,
        )
    ensure_telemetry()
    deployment = serve.deployment(EngineReplica).options(
        name=GROUP_DEPLOYMENT,
        ray_actor_options=_actor_options(parsed),
        max_ongoing_requests=_UNLIMITED,
        # Serve counts only requests that came through it, none of ours: it need not wait.
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=parsed.drain_timeout_s + SHUTDOWN_MARGIN_S,
        max_surge_percent=parsed.max_surge_percent,
        request_router_config=RequestRouterConfig(request_router_class=MembershipRouter),
        **_HEALTH,
        **_group_count(parsed),
    )
    application: Application = deployment.bind(parsed)
    return application


def _gateway_count(args: GatewayArgs) -> dict[str, Any]:
    per_node = args.per_node if sys.platform == "linux" else 1  # macOS balances no shared port
    policy = AutoscalingPolicy(
        policy_function=GatewaysPerNode, policy_kwargs={"per_node": per_node}
    )
    return {
        # Twice per_node, so that a rolling update finds room for the new beside the old.
        "max_replicas_per_node": 2 * per_node,
        "autoscaling_config": AutoscalingConfig(
            min_replicas=per_node,
            initial_replicas=per_node,
            max_replicas=per_node * _MAX_NODES,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            policy=policy,
        ),
    }


def _group_count(args: GroupArgs) -> dict[str, Any]:
    if args.replicas.min:
        return {"num_replicas": args.replicas.min}
    # Serve takes a count of zero only from an autoscaling policy.
    policy = AutoscalingPolicy(policy_function=FixedReplicas, policy_kwargs={"count": 0})
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=0, initial_replicas=0, max_replicas=args.replicas.max, policy=policy
        )
    }


def _actor_options(args: GroupArgs) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": args.num_cpus}
    if args.accelerator:
        options["num_gpus"] = args.tensor_parallel * args.pipeline_parallel
        options["accelerator_type"] = args.accelerator
    if args.env:
        options["runtime_env"] = {"env_vars": dict(args.env)}
    return options
