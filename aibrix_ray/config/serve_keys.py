"""The names of Ray Serve's own configuration schema, and who decides an option where it is ours.

Serve ignores a key that it does not know, in silence; we refuse it. A test holds these names
against the schema of the installed Ray.
"""

from __future__ import annotations

GATEWAY_PATH = "aibrix_ray:gateway"
GROUP_PATH = "aibrix_ray:replica_group"

#: the one deployment of a gateway application.
GATEWAY_DEPLOYMENT = "gateway"

PROXY_LOCATIONS = ("Disabled", "EveryNode", "HeadOnly")

TOP_KEYS = frozenset(
    {
        "applications",
        "controller_options",
        "grpc_options",
        "http_options",
        "logging_config",
        "proxy_location",
        "target_capacity",
        "tracing_config",
    }
)

_LOGGING_KEYS = frozenset(
    {
        "additional_log_standard_attrs",
        "enable_access_log",
        "encoding",
        "log_level",
        "logs_dir",
    }
)

#: top-level key whose value is a mapping → the keys of that mapping.
NESTED_KEYS = {
    "controller_options": frozenset({"runtime_env"}),
    "grpc_options": frozenset(
        {"enable_reflection", "grpc_servicer_functions", "port", "request_timeout_s"}
    ),
    "http_options": frozenset(
        {
            "host",
            "keep_alive_timeout_s",
            "port",
            "request_timeout_s",
            "root_path",
            "ssl_ca_certs",
            "ssl_certfile",
            "ssl_keyfile",
            "ssl_keyfile_password",
        }
    ),
    "logging_config": _LOGGING_KEYS,
}

APPLICATION_KEYS = frozenset(
    {
        "args",
        "autoscaling_policy",
        "deployments",
        "external_scaler_enabled",
        "host",
        "import_path",
        "logging_config",
        "name",
        "port",
        "route_prefix",
        "runtime_env",
    }
)

DEPLOYMENT_KEYS = frozenset(
    {
        "autoscaling_config",
        "backpressure_config",
        "deployment_actors",
        "gang_scheduling_config",
        "graceful_shutdown_timeout_s",
        "graceful_shutdown_wait_loop_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "logging_config",
        "max_ongoing_requests",
        "max_queued_requests",
        "max_replicas_per_node",
        "max_surge_percent",
        "name",
        "num_replicas",
        "placement_group_bundle_label_selector",
        "placement_group_bundles",
        "placement_group_strategy",
        "ray_actor_options",
        "request_router_config",
        "rolling_update_percentage",
        "user_config",
    }
)

#: deployment options that a change of restarts replicas; every other one is applied in place.
RESTARTING_DEPLOYMENT_KEYS = frozenset(
    {
        "deployment_actors",
        "gang_scheduling_config",
        "max_replicas_per_node",
        "placement_group_bundle_label_selector",
        "placement_group_bundles",
        "placement_group_strategy",
        "ray_actor_options",
        "request_router_config",
    }
)

#: application keys that are part of Serve's code version: a change restarts all its replicas.
RESTARTING_APPLICATION_KEYS = frozenset(
    {"args", "autoscaling_policy", "import_path", "runtime_env"}
)

#: options of the gateway's deployment that the gateway's builder decides → what to set instead.
GATEWAY_OWNS = {
    "autoscaling_config": "args.per_node",
    "graceful_shutdown_timeout_s": "args.drain_timeout_s",
    "max_replicas_per_node": "args.per_node",
    "num_replicas": "args.per_node",
}
