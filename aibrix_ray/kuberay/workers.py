"""Which worker pods an installation needs: a worker group for each accelerator, a pod a replica.

A pod is as large as the largest replica of its kind and never depends on how many there are: so a
change of the counts changes only counts, which KubeRay applies without replacing the cluster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aibrix_ray.config import GroupArgs, SimulatedEngineConfig, VllmEngineConfig

CPU = "cpu"

#: Beside the replica, a pod carries its gateways and Ray's own processes.
_BESIDE_CPUS = 1
#: vLLM keeps a core busy for each accelerator, one for the engine's loop and one for its server.
_ENGINE_CPUS = 2

_SIMULATED_GIB = 4
_CPU_ENGINE_GIB = 8
_CPU_KV_CACHE_GIB = 1
_PER_GPU_GIB = 32


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The pods of one kind.

    Attributes:
        name: of the worker group.
        accelerator: as Ray names it; "" for the CPU.
        gpus: of one pod, the largest product of tensor and pipeline parallelism.
        num_cpus: what Ray may hand out on one pod.
        cpus: what one pod asks Kubernetes for.
        memory_gib: of one pod.
        fewest: pods that the groups' smallest numbers of replicas need.
        most: pods that their largest numbers of replicas need.
        drain_timeout_s: the longest of its groups.
    """

    name: str
    accelerator: str
    gpus: int
    num_cpus: int
    cpus: int
    memory_gib: int
    fewest: int
    most: int
    drain_timeout_s: float

    @property
    def gpu_resource(self) -> str:
        """The name under which Kubernetes hands this accelerator out."""
        return "amd.com/gpu" if self.accelerator.startswith("AMD-") else "nvidia.com/gpu"


def worker_groups(groups: Mapping[str, GroupArgs]) -> list[WorkerGroup]:
    """Return the worker groups, in the order in which the file first names each accelerator.

    KubeRay adds a worker group at the end of the list in place; any other order would be a new
    cluster.
    """
    by_accelerator: dict[str, list[GroupArgs]] = {}
    for group in groups.values():
        by_accelerator.setdefault(group.accelerator or "", []).append(group)
    found: list[WorkerGroup] = []
    for accelerator, members in by_accelerator.items():
        taken = {group.name for group in found}
        found.append(_worker_group(_name(accelerator, taken), accelerator, members))
    return found


def gpus_of(group: GroupArgs) -> int:
    """Return the accelerators of one replica."""
    return group.tensor_parallel * group.pipeline_parallel if group.accelerator else 0


def _worker_group(name: str, accelerator: str, members: list[GroupArgs]) -> WorkerGroup:
    gpus = max(map(gpus_of, members))
    num_cpus = max(1, *(math.ceil(group.num_cpus) for group in members))
    busy = max(num_cpus, gpus + _ENGINE_CPUS) if gpus else num_cpus
    return WorkerGroup(
        name=name,
        accelerator=accelerator,
        gpus=gpus,
        num_cpus=num_cpus,
        cpus=busy + _BESIDE_CPUS,
        memory_gib=max(map(_memory_gib, members)),
        fewest=sum(group.replicas.min for group in members),
        most=sum(group.replicas.max for group in members),
        drain_timeout_s=max(group.drain_timeout_s for group in members),
    )


def _memory_gib(group: GroupArgs) -> int:
    if isinstance(group.engine, SimulatedEngineConfig):
        return _SIMULATED_GIB
    if group.accelerator:
        return gpus_of(group) * _PER_GPU_GIB
    assert isinstance(group.engine, VllmEngineConfig), "every other engine is vLLM's"
    return _CPU_ENGINE_GIB + math.ceil(group.engine.kv_cache_gib or _CPU_KV_CACHE_GIB)


def _name(accelerator: str, taken: Iterable[str]) -> str:
    """Return a DNS label: A10 → a10, "NVIDIA H100" → nvidia-h100; numbered where it is taken."""
    label = re.sub(r"[^a-z0-9]+", "-", accelerator.lower()).strip("-")[:40].strip("-") or CPU
    if accelerator and label == CPU:
        label = "accelerator"
    name, number = label, 1
    while name in taken:
        number += 1
        name = f"{label}-{number}"
    return name
