"""Recording and alert rules for Prometheus as plain data, each alert with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aibrix_ray.observability import metrics as table
from aibrix_ray.observability.panels import FAILED
from aibrix_ray.observability.promql import Queries

_WINDOW = "5m"
_BY_MODEL = ("model",)

#: What the alerts read is recorded under these names, so that a graph of it costs nothing.
FAILED_SHARE = "model:aibrix_ray_requests_failed:ratio_rate5m"
TTFT_P99 = "model:aibrix_ray_time_to_first_token_seconds:p99_rate5m"
QUEUE_SHARE = "model:aibrix_ray_queue_waiting:ratio"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on somebody should look.

    Attributes:
        failed_share: failed requests by all requests of a model.
        ttft_p99_s: time to first token, 99th percentile of a model.
        queue_share: requests in the admission queue by those it takes.
        telemetry_age_s: age of a model's newest report.
        fds_share: open files by those allowed.
    """

    failed_share: float = 0.05
    ttft_p99_s: float = 5.0
    queue_share: float = 0.8
    telemetry_age_s: float = 30.0
    fds_share: float = 0.8


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert; `summary` may use Prometheus' templates, `runbook` says what to do."""

    name: str
    expression: str
    lasts: str
    severity: Literal["critical", "warning"]
    summary: str
    runbook: str


def rules(filters: Sequence[str] = (), thresholds: Thresholds | None = None) -> dict[str, Any]:
    """Return a Prometheus rule file.

    Args:
        filters: matchers that every query gets, such as `cluster="prod"`.
        thresholds: from where on alerts fire.
    """
    queries = Queries(_WINDOW, tuple(filters))
    alerts = _alerts(queries, thresholds or Thresholds())
    return {
        "groups": [
            {
                "name": "aibrix-ray-recorded",
                "rules": [{"record": n, "expr": e} for n, e in _recorded(queries).items()],
            },
            {"name": "aibrix-ray-alerts", "rules": [_rule(alert) for alert in alerts]},
        ]
    }


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": alert.runbook},
    }


def _recorded(q: Queries) -> dict[str, str]:
    failed, every = (q.rate(table.REQUESTS, *only, by=_BY_MODEL) for only in ([FAILED], []))
    waiting, capacity = (
        q.gauge(each, by=_BY_MODEL) for each in (table.QUEUE_WAITING, table.QUEUE_CAPACITY)
    )
    return {
        FAILED_SHARE: f"{failed} / {every}",
        TTFT_P99: q.quantile(0.99, table.TTFT, by=_BY_MODEL),
        QUEUE_SHARE: f"{waiting} / ({capacity} > 0)",
    }


def _alerts(q: Queries, t: Thresholds) -> Iterator[Alert]:
    yield from _about_requests(q, t)
    yield from _about_replicas(q, t)
    yield from _about_gateways(q, t)


def _about_requests(q: Queries, t: Thresholds) -> Iterator[Alert]:
    yield Alert(
        "AibrixRayHighFailedShare",
        f"{FAILED_SHARE} > {t.failed_share:g}",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} fail",
        "Split by status: 502 are replicas that fail (`aibrix-ray status`, their logs in Ray's "
        "dashboard), 503 a model without a free or ready replica, 504 one that does not answer "
        "within its time limits. If it began with a deployment, deploy the old file again.",
    )
    yield Alert(
        "AibrixRaySlowFirstToken",
        f"{TTFT_P99} > {t.ttft_p99_s:g}",
        "10m",
        "warning",
        "1 in 100 streams of {{ $labels.model }} waits {{ $value | humanizeDuration }} or longer "
        "for its first token",
        "Replicas are full or prompts are long: compare requests under way with the replicas' "
        "max_outstanding, and prompt tokens with what the model usually gets. More replicas, a "
        "lower max_outstanding (requests then wait at the gateway) or prefix caching help.",
    )
    yield Alert(
        "AibrixRayQueueSaturated",
        f"{QUEUE_SHARE} > {t.queue_share:g} or {q.rate(table.QUEUE_REFUSED, by=_BY_MODEL)} > 0",
        "2m",
        "warning",
        "The admission queue of {{ $labels.model }} is full or nearly so",
        "The fleet is full. Raise replicas.max of the model's groups, or limit the tenants that "
        "send most (dashboard of tenants). A longer queue only makes clients wait longer.",
    )
    yield Alert(
        "AibrixRayStreamsBroken",
        f"{q.increase(table.BROKEN, window='15m', by=_BY_MODEL)} > 3",
        "0m",
        "warning",
        "{{ $value | humanize }} streams of {{ $labels.model }} broke within 15 minutes",
        "Replicas die or hang while they answer, and these streams could not be carried over. "
        "Look for restarts in `aibrix-ray status` and for out-of-memory kills in the system's log.",
    )


def _about_replicas(q: Queries, t: Thresholds) -> Iterator[Alert]:
    none_ready = f"{q.gauge(table.READY, by=_BY_MODEL)} == 0"
    held, waiting = (
        f"sum by (model) (max_over_time({q.select(each)}[{_WINDOW}]))"
        for each in (table.HELD, table.QUEUE_WAITING)
    )
    yield Alert(
        "AibrixRayNoReadyReplicas",
        f"{none_ready} and on (model) ({held} + {waiting} > 0)",
        "2m",
        "critical",
        "Requests for {{ $labels.model }} wait, and no replica is ready",
        "`aibrix-ray status` and Ray's dashboard say why: replicas that start (loading a model "
        "takes minutes), that crash while they start (their log), or that find no place (too few "
        "GPUs or CPUs).",
    )
    yield Alert(
        "AibrixRayModelWithoutReplicas",
        none_ready,
        "15m",
        "warning",
        "{{ $labels.model }} has had no ready replica for 15 minutes",
        "As for AibrixRayNoReadyReplicas; nobody asks for this model at the moment. Intended where "
        "replicas.min is 0: then silence it for this model.",
    )
    yield Alert(
        "AibrixRayReplicaEjected",
        f"{q.gauge(table.EJECTED, by=_BY_MODEL)} > 0",
        "5m",
        "warning",
        "{{ $value }} replicas of {{ $labels.model }} are left out because they fail",
        "They are probed and come back by themselves once they answer. If not, their log says why; "
        "a replica that is ended is replaced.",
    )
    yield Alert(
        "AibrixRayTelemetryStale",
        f"{q.gauge(table.TELEMETRY_AGE, by=_BY_MODEL)} > {t.telemetry_age_s:g}",
        "2m",
        "warning",
        "No replica of {{ $labels.model }} has reported for {{ $value | humanizeDuration }}",
        "Requests go on: gateways route by their own counts. The Telemetry actor or the node's "
        "reporter does not run or cannot be reached; Ray's dashboard lists both among the actors.",
    )


def _about_gateways(q: Queries, t: Thresholds) -> Iterator[Alert]:
    yield Alert(
        "AibrixRayGatewaysAbsent",
        f"absent({q.select(table.GATEWAYS)})",
        "5m",
        "critical",
        "No gateway is scraped",
        "Either none runs (`aibrix-ray status`), or Prometheus does not reach their port: its page "
        "of targets says which.",
    )
    yield Alert(
        "AibrixRayDependencyUnreachable",
        f"{q.gauge(table.DEPENDENCY_UP, by=['dependency'])} == 0",
        "2m",
        "critical",
        "A gateway does not reach its {{ $labels.dependency }}",
        "Requests go on with what the gateways still know: of a limiter the shares that they hold, "
        "of a store the keys that they have seen. Check that it runs and that every node reaches "
        "its URL (gateway.args.auth).",
    )
    by = ("instance",)
    share = f"{q.gauge(table.OPEN_FDS, by=by)} / {q.gauge(table.MAX_FDS, by=by)}"
    yield Alert(
        "AibrixRayFileDescriptorsLow",
        f"{share} > {t.fds_share:g}",
        "5m",
        "warning",
        "A gateway at {{ $labels.instance }} has {{ $value | humanizePercentage }} of its files "
        "open",
        "Each connection is an open file. Raise the limit (`ulimit -n` before Ray starts) or lower "
        "gateway.args.http.max_connections.",
    )
