"""How many replicas there are, as deployment-level policies inside Serve's controller.

The controller may not have this package: the classes are pickled by value, so they import nothing
of ours.
"""

from __future__ import annotations

import threading
import time
from typing import Any


class GatewaysPerNode:
    """A deployment-level autoscaling policy: per_node times alive nodes, whatever the load.

    The tick reads a number that a daemon thread keeps up to date; if the thread hears nothing, the
    current target stays.
    """

    def __init__(self, per_node: int = 2, period_s: float = 1.0) -> None:
        self._per_node = per_node
        self._period_s = period_s
        self._nodes = 0
        threading.Thread(target=self._watch, name="aibrix-nodes", daemon=True).start()

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of gateways."""
        if self._nodes == 0:
            return ctx.target_num_replicas, {}
        wanted = self._per_node * self._nodes
        high = ctx.capacity_adjusted_max_replicas
        low = ctx.capacity_adjusted_min_replicas
        return max(low, min(wanted, high)), {}

    def _watch(self) -> None:
        import ray

        while True:
            try:
                self._nodes = sum(1 for node in ray.nodes() if node["Alive"])
            except Exception:
                # The GCS may be away for a while; the last number stays.
                self._nodes = self._nodes or 0
            time.sleep(self._period_s)


class FixedReplicas:
    """Always the same count, whatever the load."""

    def __init__(self, count: int = 0) -> None:
        self._count = count

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Return the count."""
        return self._count, {}
