"""A local Ray for this folder, and a namespace without our actors for each test of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

DEADLINE_S = 20.0


@pytest.fixture(scope="package")
def local_ray() -> Iterator[Any]:
    """Start a Ray of our own, whatever else runs on this machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        namespace="tests",
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def cluster(local_ray: Any) -> Iterator[Any]:
    """Give a cluster without detached actors of ours, and leave it so."""
    end_our_actors(local_ray)
    yield local_ray
    end_our_actors(local_ray)


def end_our_actors(ray: Any) -> None:
    from aibrix_ray.telemetry.detached import NAMESPACE

    until_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        names = ray.util.list_named_actors(all_namespaces=True)
        ours = [a["name"] for a in names if a["namespace"] == NAMESPACE]
        if not ours:
            return
        for name in ours:
            try:
                ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
            except ValueError:
                continue
    raise TimeoutError(f"actors that do not end: {ours}")
