"""Makes the stats and groups that the tests of this folder report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aibrix_ray.types import GroupInfo, ReplicaStats

_STATS = ReplicaStats(
    replica_id="r1", group="g", model="m", epoch="e1", sequence=1, running=0, waiting=0
)


def make_stats(replica_id: str = "r1", sequence: int = 1, **fields: Any) -> ReplicaStats:
    return replace(_STATS, replica_id=replica_id, sequence=sequence, **fields)


def make_group(name: str = "g", **fields: Any) -> GroupInfo:
    return GroupInfo(name=name, **{"model": "m", **fields})


def make_fleet(count: int, sequence: int = 1) -> list[ReplicaStats]:
    """Return busy replicas with every field set, as large as real ones."""
    return [
        make_stats(
            f"llama-a10#replica#{i:08x}",
            sequence,
            group="llama-a10",
            model="meta-llama/Llama-3.1-8B",
            epoch="a1b2c3d4e5f60718",
            running=i % 64,
            waiting=i % 7,
            kv_usage=0.37,
            kv_blocks=10_000,
            max_running=256,
            prompt_tokens_total=123_456_789 + sequence,
            generation_tokens_total=9_876_543 + sequence,
            requests_total=12_345,
            prefix_queries_total=1_234_567,
            prefix_hits_total=456_789,
            preemptions_total=3,
            adapters=("sql", "summarise"),
        )
        for i in range(count)
    ]
