"""The plain-data views that every room speaks in. No behaviour beyond derived values.

Times are seconds on the clock of whoever fills the field in (`*_s`), tokens are counts, shares are
0 to 1. A view that crosses a process is frozen; one that a hot path updates in place says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """What an engine replica says of itself, once a reporting period.

    `epoch` is new at each start of the engine and `sequence` grows within it, so that a late or
    repeated report is recognised. Totals count from the engine's start. `None` means that this
    engine does not know the figure: never read it as zero.
    """

    replica_id: str
    group: str
    model: str
    epoch: str
    sequence: int
    running: int
    waiting: int
    kv_usage: float | None = None
    kv_blocks: int | None = None
    max_running: int | None = None
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    requests_total: int = 0
    prefix_queries_total: int | None = None
    prefix_hits_total: int | None = None
    preemptions_total: int | None = None
    adapters: tuple[str, ...] = ()
    draining: bool = False

    def has_moved(self, before: ReplicaStats | None) -> bool:
        """Return whether the engine has worked since an earlier report, or has nothing to do."""
        if before is None or before.epoch != self.epoch or self.running + self.waiting == 0:
            return True
        return self._totals != before._totals

    @property
    def _totals(self) -> tuple[int, int, int]:
        return self.prompt_tokens_total, self.generation_tokens_total, self.requests_total


@dataclass(slots=True, eq=False)
class ReplicaView:
    """What a policy may know of one replica. The fleet view updates it in place; policies read.

    `in_flight` counts this gateway's own unanswered requests. `load_base` is what the last report
    saw beyond them (other gateways, Python handles), so that `load` is right about our own traffic
    however old the report is. With no report ever (`stats is None`) it is our own count alone.
    `progress_s` is when it last showed that it works: bytes of an answer to us, a report of new
    tokens or requests, or one of having nothing to do.
    """

    replica_id: str
    group: str
    model: str
    node_id: str = ""
    accelerator: str = ""
    cost_per_hour: float | None = None
    max_outstanding: int = 512
    in_flight: int = 0
    load_base: int = 0
    draining: bool = False
    stats: ReplicaStats | None = None
    stats_at_s: float = float("-inf")
    progress_s: float = float("-inf")

    @property
    def load(self) -> int:
        """Requests that this replica holds, running and waiting, by our best knowledge."""
        return self.in_flight + self.load_base


@dataclass(slots=True)
class RequestView:
    """What a policy may know of a request. `prompt` is its JSON as it came, undecoded."""

    request_id: str
    model: str
    path: str = ""
    stream: bool = False
    prompt: bytes = b""
    max_tokens: int | None = None
    user: str | None = None
    adapter: str | None = None
    tenant: str = ""
    session: str | None = None
    priority: int = 0
    arrived_s: float = 0.0


class Verdict(Enum):
    """What a policy wants done with a request."""

    SEND = "send"
    QUEUE = "queue"
    REJECT = "reject"


@dataclass(slots=True)
class Decision:
    """A policy's answer. `replica` goes with SEND; `scores` (replica id → score) for traces."""

    verdict: Verdict
    replica: ReplicaView | None = None
    reason: str = ""
    scores: Mapping[str, float] | None = None


class Ending(Enum):
    """How a request ended, as metrics and policies count it."""

    COMPLETED = "completed"
    CLIENT_ERROR = "client_error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as the engine counted them. `cached_tokens` are part of the prompt."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of one attempt on one replica; the feedback that policies learn from.

    `ttft_s` and `e2e_s` are measured at the gateway from the moment the attempt was sent; they are
    `None` where the attempt ended before that point.
    """

    request_id: str
    model: str
    replica_id: str
    ending: Ending
    status: int = 0
    ttft_s: float | None = None
    e2e_s: float | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """What a replica group tells the rest of the installation about itself."""

    name: str
    model: str
    accelerator: str = ""
    cost_per_hour: float | None = None
    max_outstanding: int = 512
    min_replicas: int = 1
    max_replicas: int = 1
    engine: str = "vllm"
    created_s: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
