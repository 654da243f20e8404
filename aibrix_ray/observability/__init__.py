"""What is exported, and what is generated from it: the reference, dashboards and alert rules."""

from aibrix_ray.observability.dashboards import dashboards
from aibrix_ray.observability.kubernetes import pod_monitor, prometheus_rule
from aibrix_ray.observability.metrics import BY_NAME, METRICS, Definition, Kind, Over, reference
from aibrix_ray.observability.rules import Thresholds, rules

__all__ = [
    "BY_NAME",
    "METRICS",
    "Definition",
    "Kind",
    "Over",
    "Thresholds",
    "dashboards",
    "pod_monitor",
    "prometheus_rule",
    "reference",
    "rules",
]
