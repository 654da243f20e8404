"""Manifests for KubeRay from the same file that `aibrix-ray serve` reads. Speaks to no cluster."""

from aibrix_ray.kuberay.options import (
    DEFAULT_RAY_VERSION,
    STORE,
    STORE_SECRET,
    RenderOptions,
    SecretKey,
    default_image,
    name_from,
)
from aibrix_ray.kuberay.render import notes, render
from aibrix_ray.kuberay.text import to_yaml
from aibrix_ray.kuberay.workers import WorkerGroup, worker_groups

__all__ = [
    "DEFAULT_RAY_VERSION",
    "STORE",
    "STORE_SECRET",
    "RenderOptions",
    "SecretKey",
    "WorkerGroup",
    "default_image",
    "name_from",
    "notes",
    "render",
    "to_yaml",
    "worker_groups",
]
