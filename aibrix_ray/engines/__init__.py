"""Engines behind one adapter: vLLM (first-class) and a simulated one.

`vllm_engine` imports vLLM and is only imported by a replica that runs it.
"""

from aibrix_ray.engines.base import Engine, ReplicaIdentity

__all__ = ["Engine", "ReplicaIdentity"]
