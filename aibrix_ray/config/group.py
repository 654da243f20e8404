"""What a replica group is told: the arguments of one Serve application. A change restarts it.

Holds the rules between fields that would otherwise be broken in silence: an accelerator next to
settings for a CPU, parallelism with nothing to spread over.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from aibrix_ray.config.engine import EngineConfig, SimulatedEngineConfig, VllmEngineConfig
from aibrix_ray.config.part import DAY_S, Part, refuse

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CPU_KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def _default_max(fields: dict[str, Any]) -> int:
    fewest: int = fields["min"]
    return max(1, fewest)


class ReplicasConfig(Part):
    """Between how many replicas a group may have. This release has no autoscaler: `min` run."""

    min: int = Field(
        default=1,
        ge=0,
        le=10_000,
        description="Fewest replicas, and in this release how many run; 0: the model is known and "
        "its requests wait, up to `wait_for_replica_s`.",
    )
    max: int = Field(
        default_factory=_default_max,
        ge=1,
        le=10_000,
        description="Most replicas; default: `min`, at least 1. For the autoscaler, which comes "
        "with a later release.",
    )

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> ReplicasConfig:
        if self.min > self.max:
            raise refuse(
                ("max",),
                self.max,
                expected=f"at least replicas.min ({self.min})",
                hint="raise replicas.max or lower replicas.min",
            )
        return self


class GroupArgs(Part):
    """One model on one kind of accelerator with one engine configuration."""

    model: str = Field(
        min_length=1,
        description="Name that clients ask for; groups with the same name serve one model.",
    )
    source: str | None = Field(
        default=None,
        min_length=1,
        description="What is loaded: a Hugging Face id, a local directory or builtin:NAME; null: "
        "`model` is such an id.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="Branch, tag or commit of the source; null: the newest of its main branch.",
    )
    engine: EngineConfig = Field(
        default=VllmEngineConfig(),
        description="The engine and its settings; `kind` says which, default vllm.",
    )
    accelerator: str | None = Field(
        default=None,
        min_length=1,
        description="Accelerator type as Ray names it, such as A10 or L4; null: the CPU.",
    )
    tensor_parallel: int = Field(
        default=1, ge=1, le=1024, description="Accelerators that share each layer."
    )
    pipeline_parallel: int = Field(
        default=1, ge=1, le=1024, description="Stages of layers, each on accelerators of its own."
    )
    replicas: ReplicasConfig = Field(
        default=ReplicasConfig(), description="Bounds of the number of replicas."
    )
    num_cpus: float = Field(
        default=1.0, ge=0.0, le=4096.0, description="CPUs that Ray reserves for each replica."
    )
    cost_per_hour: float | None = Field(
        default=None,
        ge=0.0,
        description="Price of one replica for an hour, in any one currency; null: not known.",
    )
    max_outstanding: int = Field(
        default=512,
        ge=1,
        le=1_000_000,
        description="Requests that one replica may hold, running and waiting, over all gateways.",
    )
    drain_timeout_s: float = Field(
        default=600.0,
        ge=0.0,
        le=DAY_S,
        description="Seconds that a stopping replica gives its open requests; 0: none.",
    )
    max_surge_percent: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Extra replicas during a restart, in percent; 0: old ones stop before new "
        "ones start.",
    )
    env: dict[str, str] = Field(
        default={}, description="Environment variables of the engine's process, as texts."
    )
    labels: dict[str, str] = Field(
        default={}, description="Free labels, shown in status and metrics."
    )

    @field_validator("source")
    @classmethod
    def _builtin_has_a_name(cls, source: str | None) -> str | None:
        if source == "builtin:":
            raise refuse(
                (), source, expected="builtin:NAME", hint="name the model, such as builtin:tiny"
            )
        return source

    @field_validator("env")
    @classmethod
    def _env_has_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not _VARIABLE.fullmatch(name):
                raise refuse(
                    (name,),
                    value,
                    expected="a variable's name: letters, digits and underscores",
                    hint="rename the variable",
                )
        return env

    @model_validator(mode="after")
    def _engine_suits_the_hardware(self) -> GroupArgs:
        if isinstance(self.engine, SimulatedEngineConfig):
            self._check_simulated(self.engine)
        elif self.accelerator is None:
            self._check_cpu(self.engine)
        else:
            self._check_accelerator(self.engine)
        return self

    def _check_simulated(self, engine: SimulatedEngineConfig) -> None:
        if self.accelerator is not None:
            raise refuse(
                ("accelerator",),
                self.accelerator,
                expected=f"none, because engine.kind: {engine.kind} runs on a CPU",
                hint=f"set engine.profile: {self.accelerator} to play that accelerator and remove "
                "accelerator, or set engine.kind: vllm to use it",
            )
        self._check_nothing_to_spread("set engine.profile to play a larger accelerator")

    def _check_cpu(self, engine: VllmEngineConfig) -> None:
        self._check_nothing_to_spread("set accelerator, such as accelerator: A10")
        if engine.gpu_memory_utilization is not None:
            raise refuse(
                ("engine", "gpu_memory_utilization"),
                engine.gpu_memory_utilization,
                expected="no value, because accelerator is not set and a CPU has no such memory",
                hint="set accelerator, or remove engine.gpu_memory_utilization and set "
                "engine.kv_cache_gib",
            )
        if engine.kv_cache_gib is not None and _CPU_KV_VARIABLE in self.env:
            raise refuse(
                ("env", _CPU_KV_VARIABLE),
                self.env[_CPU_KV_VARIABLE],
                expected=f"no value, because engine.kv_cache_gib ({engine.kv_cache_gib:g}) sets it",
                hint=f"remove env.{_CPU_KV_VARIABLE} or engine.kv_cache_gib",
            )

    def _check_nothing_to_spread(self, way_out: str) -> None:
        for name in ("tensor_parallel", "pipeline_parallel"):
            degree = getattr(self, name)
            if degree > 1 and self.accelerator is None:
                raise refuse(
                    (name,),
                    degree,
                    expected="1, because accelerator is not set: there is nothing to spread over",
                    hint=f"{way_out}, or set {name}: 1",
                )

    def _check_accelerator(self, engine: VllmEngineConfig) -> None:
        for field, value in (
            ("engine.kv_cache_gib", engine.kv_cache_gib),
            (f"env.{_CPU_KV_VARIABLE}", self.env.get(_CPU_KV_VARIABLE)),
        ):
            if value is not None:
                raise refuse(
                    ("accelerator",),
                    self.accelerator,
                    expected=f"none, because {field} ({value}) is for a CPU only",
                    hint=f"remove accelerator to serve on the CPU, or remove {field} (and set "
                    "engine.gpu_memory_utilization) to serve on the accelerator",
                )
