"""The table of metrics: what a gateway exports, and what everything about it is generated from.

`/metrics`, the table in docs/monitoring.md, the dashboards and the alert rules all read `METRICS`;
so a dashboard cannot name a metric that is not exported, and a metric cannot be undocumented. Knows
no gateway and counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Prometheus' types, by their names in the text format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Over(Enum):
    """How the gauges of the gateways of a node become one. Counters always add up.

    A sum where each gateway has its own share (requests under way), an extreme where all look at
    the same thing (ready replicas): two gateways that see three replicas are not six replicas.
    """

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        name: as it is exported; a counter ends in `_total`, a unit is part of the name.
        help: one sentence.
        labels: in the order in which values are given.
        buckets: upper bounds of a histogram, without infinity.
        over: how a gauge is put together over the gateways of a node.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    over: Over = Over.SUM

    @property
    def cells(self) -> int:
        """How many numbers one series of it is: a histogram's buckets, the last one, its sum."""
        return len(self.buckets) + 2 if self.kind is Kind.HISTOGRAM else 1

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its samples, as queries use them."""
        if self.kind is not Kind.HISTOGRAM:
            return (self.name,)
        return (f"{self.name}_bucket", f"{self.name}_count", f"{self.name}_sum")


_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LONG_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)

_MODEL = ("model",)


def _counter(name: str, text: str, *labels: str) -> Definition:
    return Definition(f"aibrix_ray_{name}_total", Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str, over: Over = Over.SUM) -> Definition:
    return Definition(f"aibrix_ray_{name}", Kind.GAUGE, text, labels, over=over)


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Definition:
    return Definition(f"aibrix_ray_{name}", Kind.HISTOGRAM, text, _MODEL, buckets)


REQUESTS = _counter(
    "requests",
    "Requests by how they ended: completed, client_error, cancelled, rejected, failed; no model "
    "where none was resolved, status 499 where the client left.",
    "model",
    "ending",
    "status",
)
TOKENS = _counter(
    "tokens",
    "Tokens by kind: prompt, cached_prompt (part of prompt), generation.",
    "model",
    "kind",
)
TTFT = _histogram(
    "time_to_first_token_seconds",
    "Of streams: from sending to a replica to its first bytes.",
    _LATENCY_S,
)
TPOT = _histogram(
    "time_per_output_token_seconds",
    "Of streams: time from the first bytes to the end, by each token after the first.",
    _TOKEN_S,
)
E2E = _histogram(
    "e2e_request_latency_seconds",
    "From sending to a replica to the end of its answer.",
    _LONG_S,
)
QUEUE_WAIT = _histogram(
    "queue_wait_seconds", "How long requests waited in the admission queue.", _LONG_S
)
QUEUE_WAITING = _gauge("queue_waiting_requests", "Requests in the admission queue.", "model")
QUEUE_CAPACITY = _gauge(
    "queue_capacity_requests", "Requests that the admission queue takes.", "model"
)
QUEUE_REFUSED = _counter(
    "queue_refused", "Requests refused because the admission queue was full.", "model"
)
QUEUE_EXPIRED = _counter(
    "queue_expired", "Requests that waited in the admission queue for too long.", "model"
)
HELD = _gauge("held_requests", "Requests waiting for a first ready replica.", "model")
IN_FLIGHT = _gauge("in_flight_requests", "Requests under way.")
READY = _gauge("ready_replicas", "Replicas that may be routed to.", "model", over=Over.MAX)
EJECTED = _gauge(
    "ejected_replicas", "Replicas left out because they fail (outliers).", "model", over=Over.MAX
)
TELEMETRY_AGE = _gauge(
    "telemetry_age_seconds",
    "Age of the newest report of any ready replica; absent where none has ever reported.",
    "model",
    over=Over.MAX,
)
STALE = _gauge(
    "stale_replicas",
    "Ready replicas that reported once and whose newest report is older than five seconds.",
    "model",
    over=Over.MAX,
)
RETRIES = _counter("retries", "Attempts that failed before their first byte.", "model")
HEDGES = _counter(
    "hedges", "Second replicas asked because the first one had not begun to answer.", "model"
)
RESUMED = _counter("streams_resumed", "Streams continued on another replica.", "model")
BROKEN = _counter("streams_broken", "Streams that ended with an error event.", "model")
TENANT_REQUESTS = _counter("tenant_requests", "Requests answered, by tenant.", "tenant")
TENANT_TOKENS = _counter(
    "tenant_tokens", "Tokens of a tenant by kind, as in aibrix_ray_tokens_total.", "tenant", "kind"
)
LIMITED = _counter(
    "limited_requests", "Requests refused by a limit, by the kind of limit.", "tenant", "kind"
)
DEPENDENCY_UP = _gauge(
    "dependency_up",
    "1 where every gateway reaches what it depends on, else 0.",
    "dependency",
    over=Over.MIN,
)
GATEWAYS = _gauge("gateways", "Gateway processes of this node that run.")
BUILD_INFO = _gauge("build_info", "1; the label says which version runs.", "version", over=Over.MAX)
CPU = _counter("process_cpu_seconds", "CPU time of the gateway processes, user and system.")
RSS = _gauge("process_resident_memory_bytes", "Resident memory of the gateway processes.")
OPEN_FDS = _gauge(
    "process_open_fds",
    "Open file descriptors of the gateway process that has most.",
    over=Over.MAX,
)
MAX_FDS = _gauge(
    "process_max_fds", "File descriptors that a gateway process may open.", over=Over.MIN
)

#: Every metric, in the order of `/metrics` and of the documentation.
METRICS: tuple[Definition, ...] = (
    REQUESTS,
    TOKENS,
    TTFT,
    TPOT,
    E2E,
    IN_FLIGHT,
    RETRIES,
    HEDGES,
    RESUMED,
    BROKEN,
    QUEUE_WAITING,
    QUEUE_CAPACITY,
    QUEUE_REFUSED,
    QUEUE_EXPIRED,
    QUEUE_WAIT,
    HELD,
    READY,
    EJECTED,
    TELEMETRY_AGE,
    STALE,
    TENANT_REQUESTS,
    TENANT_TOKENS,
    LIMITED,
    DEPENDENCY_UP,
    GATEWAYS,
    BUILD_INFO,
    CPU,
    RSS,
    OPEN_FDS,
    MAX_FDS,
)

BY_NAME = {definition.name: definition for definition in METRICS}


def reference() -> str:
    """Return the table of docs/monitoring.md."""
    lines = ["| metric | type | labels | over gateways | meaning |", "|---|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        over = each.over.value if each.kind is Kind.GAUGE else "sum"
        lines.append(f"| `{each.name}` | {each.kind.value} | {labels} | {over} | {each.help} |")
    return "\n".join(lines) + "\n"
