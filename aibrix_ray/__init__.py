"""Ray-native serving for large language models. The public door; imports neither Ray nor vLLM."""

from __future__ import annotations

import importlib
from typing import Any

from aibrix_ray.types import (
    Decision,
    Ending,
    Outcome,
    ReplicaStats,
    ReplicaView,
    RequestView,
    Usage,
    Verdict,
)

__version__ = "0.1.0"

#: name → the module that holds it; loaded at first use, because these import Ray.
_LAZY = {
    "gateway": "aibrix_ray.deployments.builders",
    "replica_group": "aibrix_ray.deployments.builders",
    "connect": "aibrix_ray.deployments.handles",
}

__all__ = [
    "Decision",
    "Ending",
    "Outcome",
    "ReplicaStats",
    "ReplicaView",
    "RequestView",
    "Usage",
    "Verdict",
    "__version__",
    "connect",
    "gateway",
    "replica_group",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
