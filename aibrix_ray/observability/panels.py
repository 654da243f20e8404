"""The panels of the dashboards: what each one shows, and why one looks at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from aibrix_ray.observability import metrics as table
from aibrix_ray.observability.metrics import Definition
from aibrix_ray.observability.promql import Queries

FAILED = 'ending="failed"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        queries: PromQL and the legend of its series.
        unit: Grafana's id of the unit.
        help: shown at the panel's corner.
        kind: a graph over time, or one number.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    help: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


Rows = Sequence[Row]
Build = Callable[[Queries], Rows]


def overview(q: Queries) -> Rows:
    """Return the panels about a whole installation."""
    model = ("model",)
    return (
        Row("Now", _now(q)),
        Row("Traffic", _traffic(q, model)),
        Row("Latency", _latency(q)),
        Row("Room", _room(q)),
        Row("Recovery", _recovery(q)),
        Row("Limits", _limits(q)),
        Row("Gateways", _gateways(q)),
    )


def model(q: Queries) -> Rows:
    """Return the panels about one model."""
    return (
        Row("Traffic", (*_traffic(q, ("ending", "status")), _cached(q))),
        Row("Latency", _latency(q)),
        Row("Room", _room(q)),
        Row("Recovery", _recovery(q)),
    )


def tenant(q: Queries) -> Rows:
    """Return the panels about tenants."""
    counted = 'kind!="cached_prompt"'  # which is part of prompt
    tokens = q.increase(table.TENANT_TOKENS, counted, window="$__range", by=["tenant"])
    by_tenant = ["tenant"]
    return (
        Row(
            "Use",
            (
                _graph(
                    "Requests", "reqps", (q.rate(table.TENANT_REQUESTS, by=by_tenant), "{{tenant}}")
                ),
                _graph(
                    "Tokens",
                    "short",
                    (
                        q.rate(table.TENANT_TOKENS, by=["tenant", "kind"]),
                        "{{tenant}} {{kind}}",
                    ),
                    help="Tokens a second; cached_prompt is part of prompt.",
                ),
                Panel(
                    "Most tokens in this range",
                    ((f"topk(10, {tokens})", "{{tenant}}"),),
                    help="The tenants beyond the first hundred of a gateway are one: other.",
                    kind="stat",
                ),
            ),
        ),
        Row(
            "Limits",
            (
                _graph(
                    "Refused by a limit",
                    "reqps",
                    (q.rate(table.LIMITED, by=["tenant", "kind"]), "{{tenant}} {{kind}}"),
                ),
            ),
        ),
    )


def _graph(title: str, unit: str, *queries: tuple[str, str], help: str = "") -> Panel:
    return Panel(title, queries, unit, help)


def _number(title: str, unit: str, query: str, *, help: str = "") -> Panel:
    return Panel(title, ((query, ""),), unit, help, "stat")


def _now(q: Queries) -> tuple[Panel, ...]:
    failed = f"{q.rate(table.REQUESTS, FAILED)} or vector(0)"
    return (
        _number("Requests", "reqps", q.rate(table.REQUESTS)),
        _number(
            "Failed",
            "percentunit",
            f"({failed}) / {q.rate(table.REQUESTS)}",
            help="Share of requests that ended with a 5xx or broke.",
        ),
        _number("Tokens generated", "short", q.rate(table.TOKENS, 'kind="generation"')),
        _number("Under way", "short", q.gauge(table.IN_FLIGHT)),
        _number("First token, p99", "s", q.quantile(0.99, table.TTFT)),
        _number("Ready replicas", "short", f"sum ({q.gauge(table.READY, by=['model'])})"),
    )


def _traffic(q: Queries, by: Sequence[str]) -> tuple[Panel, ...]:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return (
        _graph("Requests", "reqps", (q.rate(table.REQUESTS, by=by), legend)),
        _graph(
            "Requests that did not complete",
            "reqps",
            (
                q.rate(table.REQUESTS, 'ending!="completed"', by=["ending", "status"]),
                "{{ending}} {{status}}",
            ),
            help="client_error and cancelled are the clients' doing; rejected and failed are ours.",
        ),
        _graph("Tokens", "short", (q.rate(table.TOKENS, by=["kind"]), "{{kind}}")),
    )


def _cached(q: Queries) -> Panel:
    cached, prompt = (
        q.rate(table.TOKENS, f'kind="{kind}"') for kind in ("cached_prompt", "prompt")
    )
    return _graph(
        "Prompt tokens from the prefix cache",
        "percentunit",
        (f"{cached} / {prompt}", "cached"),
    )


def _quantiles(q: Queries, title: str, definition: Definition, *, help: str = "") -> Panel:
    queries = tuple(
        (q.quantile(share, definition), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99)
    )
    return Panel(title, queries, "s", help or definition.help)


def _latency(q: Queries) -> tuple[Panel, ...]:
    return (
        _quantiles(q, "Time to first token", table.TTFT),
        _quantiles(q, "Time per output token", table.TPOT),
        _quantiles(q, "Whole answer", table.E2E),
        _quantiles(q, "Wait in the queue", table.QUEUE_WAIT),
    )


def _room(q: Queries) -> tuple[Panel, ...]:
    by = ["model"]
    return (
        _graph(
            "Replicas",
            "short",
            (q.gauge(table.READY, by=by), "{{model}} ready"),
            (q.gauge(table.EJECTED, by=by), "{{model}} ejected"),
        ),
        _graph(
            "Waiting",
            "short",
            (q.gauge(table.QUEUE_WAITING, by=by), "{{model}} for a free place"),
            (q.gauge(table.HELD, by=by), "{{model}} for a replica"),
        ),
        _graph(
            "Queue in use",
            "percentunit",
            (
                f"{q.gauge(table.QUEUE_WAITING, by=by)} / {q.gauge(table.QUEUE_CAPACITY, by=by)}",
                "{{model}}",
            ),
        ),
        _graph(
            "Refused by the queue",
            "reqps",
            (q.rate(table.QUEUE_REFUSED, by=by), "{{model}} full"),
            (q.rate(table.QUEUE_EXPIRED, by=by), "{{model}} too long"),
        ),
    )


def _recovery(q: Queries) -> tuple[Panel, ...]:
    by = ["model"]
    return (
        _graph(
            "Attempts",
            "reqps",
            (q.rate(table.RETRIES, by=by), "{{model}} retried"),
            (q.rate(table.HEDGES, by=by), "{{model}} hedged"),
            help="What clients do not see: a replica failed or was slow, another one answered.",
        ),
        _graph(
            "Streams",
            "reqps",
            (q.rate(table.RESUMED, by=by), "{{model}} resumed"),
            (q.rate(table.BROKEN, by=by), "{{model}} broken"),
            help="Of a broken stream the client got an error event.",
        ),
        _graph(
            "Reports of the replicas",
            "s",
            (q.gauge(table.TELEMETRY_AGE, by=by), "{{model}} newest"),
            help="Without reports, gateways route by their own counts.",
        ),
        _graph(
            "Replicas without a fresh report", "short", (q.gauge(table.STALE, by=by), "{{model}}")
        ),
    )


def _limits(q: Queries) -> tuple[Panel, ...]:
    dependency = ["dependency"]
    return (
        _graph("Refused by a limit", "reqps", (q.rate(table.LIMITED, by=["kind"]), "{{kind}}")),
        _graph(
            "Reachable", "bool", (q.gauge(table.DEPENDENCY_UP, by=dependency), "{{dependency}}")
        ),
    )


def _gateways(q: Queries) -> tuple[Panel, ...]:
    by = ["instance"]
    return (
        _graph(
            "Gateways",
            "short",
            (q.gauge(table.GATEWAYS, by=by), "{{instance}}"),
            (q.gauge(table.BUILD_INFO, by=["version"]), "version {{version}}"),
        ),
        _graph("CPU cores", "short", (q.rate(table.CPU, by=by), "{{instance}}")),
        _graph("Memory", "bytes", (q.gauge(table.RSS, by=by), "{{instance}}")),
        _graph(
            "Open files",
            "short",
            (q.gauge(table.OPEN_FDS, by=by), "{{instance}} open"),
            (q.gauge(table.MAX_FDS, by=by), "{{instance}} limit"),
        ),
    )
