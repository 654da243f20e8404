from __future__ import annotations

import pytest

from aibrix_ray.kuberay import WorkerGroup, worker_groups
from tests.kuberay.files import GATEWAY, group_text, parse


def make_workers(*groups: str) -> list[WorkerGroup]:
    return worker_groups(
        parse(GATEWAY, *(group_text(f"g{i}", text) for i, text in enumerate(groups))).groups
    )


def test_each_accelerator_has_one_worker_group_in_the_order_of_the_file() -> None:
    found = make_workers(
        "model: a, accelerator: L4",
        "model: b",
        "model: c, accelerator: A10G",
        "model: d, accelerator: L4",
    )
    assert [(group.name, group.accelerator) for group in found] == [
        ("l4", "L4"),
        ("cpu", ""),
        ("a10g", "A10G"),
    ]


@pytest.mark.parametrize(
    ("args", "gpus"),
    [
        ("model: m, accelerator: L4", 1),
        ("model: m, accelerator: L4, tensor_parallel: 2", 2),
        ("model: m, accelerator: L4, tensor_parallel: 2, pipeline_parallel: 2", 4),
        ("model: m", 0),
    ],
)
def test_a_pod_has_the_accelerators_of_one_replica(args: str, gpus: int) -> None:
    """U49: the devices of all pods are those of all replicas, none idle and none missing."""
    (group,) = make_workers(f"{args}, replicas: {{min: 3, max: 5}}")
    assert group.gpus == gpus
    assert group.gpus * group.fewest == gpus * 3
    assert group.gpus * group.most == gpus * 5


def test_counts_add_up_over_the_groups_of_one_accelerator() -> None:
    (group,) = make_workers(
        "model: a, accelerator: L4, replicas: {min: 1, max: 2}",
        "model: b, accelerator: L4, replicas: {min: 0, max: 3}",
    )
    assert (group.fewest, group.most) == (1, 5)


def test_a_pod_is_as_large_as_its_largest_replica() -> None:
    (group,) = make_workers(
        "model: a, accelerator: L4, tensor_parallel: 4, drain_timeout_s: 60",
        "model: b, accelerator: L4, num_cpus: 12.5, drain_timeout_s: 90",
    )
    assert (group.gpus, group.num_cpus, group.drain_timeout_s) == (4, 13, 90.0)


def test_the_size_of_a_pod_does_not_depend_on_how_many_replicas_there_are() -> None:
    (few,) = make_workers("model: a, replicas: {min: 1, max: 1}")
    (many,) = make_workers("model: a, replicas: {min: 7, max: 9}")
    assert (few.cpus, few.memory_gib, few.num_cpus) == (many.cpus, many.memory_gib, many.num_cpus)


def test_ray_hands_out_whole_cpus_and_at_least_one() -> None:
    for num_cpus, expected in ((0, 1), (0.1, 1), (1, 1), (2.5, 3)):
        (group,) = make_workers(f"model: a, num_cpus: {num_cpus}")
        assert group.num_cpus == expected
        assert group.cpus > expected  # the gateways and Ray live in the pod too


def test_memory_follows_the_engine() -> None:
    def memory(args: str) -> int:
        (group,) = make_workers(args)
        return group.memory_gib

    simulated = memory("model: a, engine: {kind: simulated}")
    cpu = memory("model: a")
    assert simulated < cpu < memory("model: a, engine: {kv_cache_gib: 20}")
    assert memory("model: a, accelerator: L4, tensor_parallel: 2") == 2 * memory(
        "model: a, accelerator: L4"
    )


def test_worker_groups_have_distinct_names_that_kubernetes_takes() -> None:
    found = make_workers(
        "model: a, accelerator: RTX_PRO 6000",
        "model: a, accelerator: RTX-PRO-6000",
        "model: a, accelerator: CPU",
        "model: a",
    )
    assert [group.name for group in found] == [
        "rtx-pro-6000",
        "rtx-pro-6000-2",
        "accelerator",
        "cpu",
    ]


def test_amd_accelerators_are_asked_for_by_amds_name() -> None:
    amd, nvidia = make_workers(
        "model: a, accelerator: AMD-Instinct-MI300X-OAM", "model: a, accelerator: H100"
    )
    assert (amd.gpu_resource, nvidia.gpu_resource) == ("amd.com/gpu", "nvidia.com/gpu")
