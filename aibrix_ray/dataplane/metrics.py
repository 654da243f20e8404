"""The gateway's figures: plain numbers on the hot path, Prometheus text when it is asked for.

A label lookup of the client library costs more than everything else we do for a request, so the
counts are kept in plain slots a model and read by a collector at scrape time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from aibrix_ray.pipeline import ModelState
from aibrix_ray.types import Ending, Usage

TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
E2E_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Histogram:
    """Counts a bucket and sums; `observe` costs one bisection."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def export(self) -> tuple[list[tuple[str, float]], float]:
        """Return cumulative buckets and the sum, as the client library wants them."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum


class ModelMetrics:
    """What is counted for one model in one gateway."""

    __slots__ = ("e2e_s", "endings", "tokens", "ttft_s")

    def __init__(self) -> None:
        self.endings: dict[tuple[Ending, int], int] = {}
        self.tokens = [0, 0, 0]  # prompt, cached prompt, generation
        self.ttft_s = Histogram(TTFT_BUCKETS_S)
        self.e2e_s = Histogram(E2E_BUCKETS_S)


class GatewayMetrics:
    """All figures of one gateway process; a collector of the Prometheus client library."""

    def __init__(self, models: Mapping[str, ModelState], under_way: Callable[[], int]) -> None:
        self._live_models = models
        self._under_way = under_way
        self._models: dict[str, ModelMetrics] = {}
        self.retries = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def request_ended(self, model: str, ending: Ending, status: int) -> None:
        """Count a request that has been answered or given up; `model` "" if never resolved."""
        endings = self.of(model).endings
        key = (ending, status)
        endings[key] = endings.get(key, 0) + 1

    def attempt_ended(
        self, model: str, ttft_s: float | None, e2e_s: float, usage: Usage | None
    ) -> None:
        """Count what one attempt on a replica measured."""
        metrics = self.of(model)
        if ttft_s is not None:
            metrics.ttft_s.observe(ttft_s)
            metrics.e2e_s.observe(e2e_s)
        if usage is not None:
            metrics.tokens[0] += usage.prompt_tokens
            metrics.tokens[1] += usage.cached_tokens
            metrics.tokens[2] += usage.completion_tokens

    def of(self, model: str) -> ModelMetrics:
        """Return the figures of one model."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics()
        return found

    def render(self) -> bytes:
        """Return the Prometheus text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family; called by the client library."""
        yield from self._requests()
        yield from self._latencies()
        ready = GaugeMetricFamily(
            "aibrix_ray_ready_replicas", "Replicas that may be routed to.", labels=["model"]
        )
        held = GaugeMetricFamily(
            "aibrix_ray_held_requests", "Requests waiting for a replica.", labels=["model"]
        )
        for name, model in self._live_models.items():
            ready.add_metric([name], len(model.ready))
            held.add_metric([name], model.held)
        yield ready
        yield held
        in_flight = GaugeMetricFamily(
            "aibrix_ray_in_flight_requests", "Requests of this gateway that are under way."
        )
        in_flight.add_metric([], self._under_way())
        yield in_flight
        retries = CounterMetricFamily(
            "aibrix_ray_retries", "Attempts that failed before their first byte."
        )
        retries.add_metric([], self.retries)
        yield retries

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "aibrix_ray_requests",
            "Requests by how they ended.",
            labels=["model", "ending", "status"],
        )
        tokens = CounterMetricFamily(
            "aibrix_ray_tokens", "Tokens by kind.", labels=["model", "kind"]
        )
        for name, metrics in self._models.items():
            for (ending, status), count in metrics.endings.items():
                requests.add_metric([name, ending.value, str(status)], count)
            kinds = ("prompt", "cached_prompt", "generation")
            for kind, count in zip(kinds, metrics.tokens, strict=True):
                tokens.add_metric([name, kind], count)
        yield requests
        yield tokens

    def _latencies(self) -> Iterator[Metric]:
        ttft = HistogramMetricFamily(
            "aibrix_ray_time_to_first_token_seconds",
            "From sending to a replica to its first bytes.",
            labels=["model"],
        )
        e2e = HistogramMetricFamily(
            "aibrix_ray_e2e_request_latency_seconds",
            "From sending to a replica to the end of its answer.",
            labels=["model"],
        )
        for name, metrics in self._models.items():
            for family, histogram in ((ttft, metrics.ttft_s), (e2e, metrics.e2e_s)):
                buckets, total = histogram.export()
                family.add_metric([name], buckets=buckets, sum_value=total)
        yield ttft
        yield e2e
