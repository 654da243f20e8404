"""Builds the engine that a group's configuration names. Imports an engine only when it is used."""

from __future__ import annotations

from aibrix_ray.config.engine import SimulatedEngineConfig
from aibrix_ray.config.group import GroupArgs
from aibrix_ray.engines.base import Engine, ReplicaIdentity


def make_engine(identity: ReplicaIdentity, args: GroupArgs) -> Engine:
    """Return the engine of `args`, not yet started.

    Raises:
        ConfigError: the source or an engine argument is wrong.
        VersionError: the engine's package is absent or outside of the tested range.
    """
    if isinstance(args.engine, SimulatedEngineConfig):
        from aibrix_ray.engines.simulated import SimulatedEngine

        return SimulatedEngine(identity, args.engine)
    from aibrix_ray.engines.vllm_engine import VllmEngine
    from aibrix_ray.models import resolve_model

    return VllmEngine(
        identity,
        args.engine,
        source=resolve_model(args.source or args.model),
        revision=args.revision,
        tensor_parallel=args.tensor_parallel,
        pipeline_parallel=args.pipeline_parallel,
        accelerator=args.accelerator,
    )
