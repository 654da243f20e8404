"""The Prometheus operator's objects: which pods are scraped, and the rules."""

from __future__ import annotations

from typing import Any

_LABELS = {"app.kubernetes.io/name": "aibrix-ray", "app.kubernetes.io/managed-by": "aibrix-ray"}


def pod_monitor() -> dict[str, Any]:
    """Return a PodMonitor of every Ray pod: each node's gateways answer for their node."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": "aibrix-ray-gateways", "labels": dict(_LABELS)},
        "spec": {
            # Set by KubeRay on the pods of every Ray cluster.
            "selector": {"matchLabels": {"ray.io/is-ray-node": "yes"}},
            "podMetricsEndpoints": [{"port": "serve", "path": "/metrics"}],
        },
    }


def prometheus_rule(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the rules as a PrometheusRule."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "aibrix-ray", "labels": dict(_LABELS)},
        "spec": rules,
    }
