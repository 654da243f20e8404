"""vLLM inside the replica: AsyncLLM in this process, its EngineCore and workers below it.

Decides what vLLM is told (arguments, environment, the profile for a CPU) and keeps its processes'
leftovers in one folder. Which of vLLM's modules that takes stands in `vllm_modules.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from aibrix_ray.asgi import AsgiApp
from aibrix_ray.config.engine import VllmEngineConfig
from aibrix_ray.engines.base import ReplicaIdentity
from aibrix_ray.engines.guard import FOLDER_VARIABLE, EngineFolder
from aibrix_ray.engines.versions import Installed, check_vllm
from aibrix_ray.engines.vllm_inputs import bound_inputs
from aibrix_ray.engines.vllm_modules import StepFigures, load_vllm
from aibrix_ray.errors import ConfigError
from aibrix_ray.types import ReplicaStats

_GIB = 2**30
_CPU_KV_CACHE_GIB = 1.0
_CPU_KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_THREADS_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
_UNBOUND = "nobind"
_PLUGINS_VARIABLE = "VLLM_PLUGINS"
#: The executor that vLLM itself takes for one accelerator, by path: for a CPU it turns its short
#: name into "mp".
_IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_GUARD_PLUGIN = "aibrix_ray_guard"

#: vLLM's bfloat16 kernels for x86 need one of these; without, attention ends the worker by SIGILL.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


class VllmEngine:
    """vLLM behind the `Engine` protocol. One a process, since vLLM is set up by its environment."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        config: VllmEngineConfig,
        *,
        source: str,
        revision: str | None,
        tensor_parallel: int,
        pipeline_parallel: int,
        accelerator: str | None,
    ) -> None:
        """Check versions and configuration; nothing is started.

        `source` is a local directory or a Hugging Face id, `identity.model` the name under which it
        is served; without `accelerator` the CPU is meant.

        Raises:
            VersionError: vLLM is absent or outside of the tested range.
            ConfigError: this build or this machine cannot do what is asked for.
        """
        self._identity = identity
        self._config = config
        self._installed = check_vllm()
        self._on_cpu = _runs_on_cpu(self._installed, accelerator)
        if self._on_cpu:
            check_dtype(config.dtype, _cpu_flags())
        self._is_local = Path(source).is_dir()
        by_environment = _CPU_KV_VARIABLE in os.environ
        unbound = os.environ.get(_THREADS_VARIABLE, _UNBOUND) == _UNBOUND
        self._arguments = {
            **engine_arguments(
                config,
                on_cpu=self._on_cpu,
                kv_cache_by_environment=by_environment,
                in_process=unbound and tensor_parallel * pipeline_parallel == 1,
            ),
            "model": source,
            "served_model_name": [identity.model],
            "revision": revision,
            "tensor_parallel_size": tensor_parallel,
            "pipeline_parallel_size": pipeline_parallel,
        }
        self._steps = StepFigures()
        self._sequence = 0
        self._folder: EngineFolder | None = None
        self._client: Any = None
        self._app: AsgiApp | None = None

    async def start(self) -> None:
        """Load the model; return when the first request could be answered.

        Raises:
            ConfigError: vLLM refuses an argument.
            VersionError: vLLM cannot be imported, or lacks a name that we build on.
        """
        EngineFolder.sweep()
        self._folder = EngineFolder.create()
        set_environment(
            os.environ,
            folder=self._folder.path,
            on_cpu=self._on_cpu,
            eager=self._arguments["enforce_eager"] is True,
            offline=self._is_local,
            cores=_cores(),
        )
        if self._config.kv_cache_gib is not None:
            os.environ.pop(_CPU_KV_VARIABLE, None)  # vLLM would let it win over the argument
        try:
            # Seconds of imports and of waiting for the processes: not on the replica's loop.
            vllm = await asyncio.to_thread(load_vllm, self._installed)
            namespace = await asyncio.to_thread(
                vllm.parse, self._arguments, extra=self._config.args
            )
            logger = vllm.stat_logger(self._steps)
            self._client = await asyncio.to_thread(vllm.create_client, namespace, logger)
            await self._client.reset_mm_cache()  # of what vLLM warmed up with
            bound_inputs()
            self._app = await vllm.build_app(self._client, namespace)
            await asyncio.to_thread(self._folder.note_names)
            # As vLLM's own server does: else every full collection walks all its modules, and the
            # tokens of that time wait.
            gc.collect()
            gc.freeze()
        except BaseException:
            await self.stop()
            raise

    def openai_app(self) -> AsgiApp:
        """Return vLLM's own OpenAI application, after `start`."""
        assert self._app is not None, "the engine has not been started"
        return self._app

    def stats(self) -> ReplicaStats:
        """Return the figures of the last engine step and the totals since the start."""
        self._sequence += 1
        steps = self._steps
        started = self._client is not None
        config = self._client.vllm_config if started else None
        caches = config is not None and config.cache_config.enable_prefix_caching
        return ReplicaStats(
            replica_id=self._identity.replica_id,
            group=self._identity.group,
            model=self._identity.model,
            epoch=self._identity.epoch,
            sequence=self._sequence,
            running=steps.running,
            waiting=steps.waiting,
            kv_usage=steps.kv_usage if started else None,
            kv_blocks=config.cache_config.num_gpu_blocks if config is not None else None,
            max_running=config.scheduler_config.max_num_seqs if config is not None else None,
            prompt_tokens_total=steps.prompt_tokens,
            generation_tokens_total=steps.generation_tokens,
            requests_total=steps.finished,
            prefix_queries_total=steps.prefix_queries if caches else None,
            prefix_hits_total=steps.prefix_hits if caches else None,
            preemptions_total=steps.preemptions if started else None,
        )

    async def check_health(self) -> None:
        """Raise if the engine's processes or the task that reads from them have ended."""
        assert self._client is not None, "the engine has not been started"
        await self._client.check_health()  # looks at flags, asks nobody: it cannot hang

    async def stop(self) -> None:
        """End vLLM's processes and remove what they left. May be called twice."""
        client, self._client = self._client, None
        self._app = None
        if client is not None:
            await asyncio.to_thread(client.shutdown)
            await asyncio.sleep(0)  # it hands the closing of its sockets to this loop
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(folder.remove)
            os.environ.pop(FOLDER_VARIABLE, None)


def engine_arguments(
    config: VllmEngineConfig,
    *,
    on_cpu: bool,
    kv_cache_by_environment: bool = False,
    in_process: bool = False,
) -> dict[str, Any]:
    """Return vLLM's arguments by Python name; what the configuration says wins, `None` is vLLM's.

    Args:
        config: the engine's settings.
        on_cpu: fill what is open with what suits a CPU.
        kv_cache_by_environment: the user set the KV cache's size in the environment.
        in_process: on a CPU, compute in the EngineCore's process; for one worker with free threads.
    """
    arguments: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "block_size": config.block_size,
        "enforce_eager": config.enforce_eager,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        # True is vLLM's default where the model can; said aloud it would be an error elsewhere.
        "enable_prefix_caching": None if config.prefix_caching else False,
        "tool_call_parser": config.tool_parser,
        "enable_auto_tool_choice": True if config.tool_parser else None,
        "reasoning_parser": config.reasoning_parser,
        "kv_cache_memory_bytes": _bytes(config.kv_cache_gib),
        "enable_prompt_tokens_details": True,
        "disable_fastapi_docs": True,
        "disable_log_stats": True,  # vLLM's log lines; ours and Prometheus' figures stay
    }
    if on_cpu:
        _fill(arguments, "block_size", 32)  # vLLM's 128 would share few prefixes
        _fill(arguments, "enforce_eager", True)  # compiling takes minutes on few cores
        if not kv_cache_by_environment:
            _fill(arguments, "kv_cache_memory_bytes", _bytes(_CPU_KV_CACHE_GIB))
        if config.dtype == "auto":
            # Some CPUs have no bfloat16, which vLLM would choose. One answer on all of them: the
            # replicas of a group must not differ by the machine they happen to be on.
            arguments["dtype"] = "float32"
        if in_process:
            # Apart, EngineCore and worker wait for each other by spinning: two cores for one.
            arguments["distributed_executor_backend"] = _IN_PROCESS
    return arguments | config.args


def _fill(arguments: dict[str, Any], name: str, value: object) -> None:
    if arguments[name] is None:
        arguments[name] = value


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * _GIB)


def check_dtype(dtype: str, cpu_flags: frozenset[str] | None) -> None:
    """Refuse a dtype that would kill the worker on this CPU; `None`: the flags are not known.

    Raises:
        ConfigError: bfloat16 on an x86 CPU without an instruction for it.
    """
    if dtype == "bfloat16" and cpu_flags is not None and not cpu_flags & _BFLOAT16_FLAGS:
        raise ConfigError(
            path="engine.dtype",
            value=dtype,
            expected=f"a type that this CPU computes in (it has none of the instructions "
            f"{', '.join(sorted(_BFLOAT16_FLAGS))})",
            hint="set engine.dtype: float32, or leave it at auto",
        )


def _cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str] | None:
    """Return an x86 CPU's flags; `None` on another architecture or without /proc."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return frozenset(value.split())
    return None


def _runs_on_cpu(installed: Installed, accelerator: str | None) -> bool:
    if accelerator is None:
        return installed.cpu_only or not _has_device()
    if installed.cpu_only:
        raise ConfigError(
            path="accelerator",
            value=accelerator,
            expected=f"none, because {installed.build.package} {installed.version} has no kernels "
            "for one",
            hint="remove accelerator, or run: pip install 'aibrix-ray[gpu]'",
        )
    return False


def _has_device() -> bool:
    """Tell whether this process may use an accelerator, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):  # so Ray hides them
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _cores() -> int:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_environment(
    environment: MutableMapping[str, str],
    *,
    folder: Path,
    on_cpu: bool,
    eager: bool,
    offline: bool,
    cores: int,
) -> None:
    """Set what vLLM, torch and the Hub read when they are imported. What is set already stays.

    Args:
        environment: changed in place; the engine's processes inherit it.
        folder: where vLLM puts its sockets.
        on_cpu: also say how to use the cores.
        eager: nothing is to be compiled.
        offline: the model is a local directory, so nothing is looked up on the Hub.
        cores: how many this process may use.
    """
    environment[FOLDER_VARIABLE] = environment["VLLM_RPC_BASE_PATH"] = str(folder)
    for name in ("VLLM_SERVER_DEV_MODE", "VLLM_API_KEY"):
        environment.pop(name, None)  # endpoints that nobody may reach; a key no gateway has
    plugins = environment.get(_PLUGINS_VARIABLE)
    if plugins is not None and _GUARD_PLUGIN not in plugins.split(","):
        environment[_PLUGINS_VARIABLE] = f"{plugins},{_GUARD_PLUGIN}" if plugins else _GUARD_PLUGIN
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if offline:
        defaults["HF_HUB_OFFLINE"] = "1"
    if on_cpu:
        defaults |= _cpu_environment(eager=eager, cores=cores)
    for name, value in defaults.items():
        environment.setdefault(name, value)


def _cpu_environment(*, eager: bool, cores: int) -> dict[str, str]:
    told = {
        # Bound threads would put all replicas of a node on its first cores.
        _THREADS_VARIABLE: _UNBOUND,
        # One core is left to the loops of replica and EngineCore.
        "OMP_NUM_THREADS": str(max(1, cores - 1)),
    }
    if eager:
        # Eager mode alone leaves functions of the sampler that torch compiles at the first request
        # that needs them (logprobs): half a minute in which the engine answers nobody, and a C++
        # compiler on the machine.
        told["TORCH_COMPILE_DISABLE"] = "1"
    return told
