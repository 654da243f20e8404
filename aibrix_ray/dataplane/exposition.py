"""The figures of several gateways as one Prometheus text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from aibrix_ray.dataplane.siblings import Figures
from aibrix_ray.observability.metrics import BY_NAME, METRICS, Definition, Kind, Over

#: The value of a gauge whose subject has gone: a model that is served no more.
GONE = math.nan

Series = dict[tuple[str, ...], list[float]]


def exposition(gateways: Iterable[Figures]) -> bytes:
    """Return the text of all metrics, each series put together over the gateways."""
    return generate_latest(_Collected(_together(gateways)))


class _Collected(CollectorRegistry):
    """What the client library asks for families when it writes its text."""

    def __init__(self, series: Mapping[str, Series]) -> None:
        super().__init__()
        self._series = series

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the table, with or without series."""
        for definition in METRICS:
            yield _family(definition, self._series.get(definition.name, {}))


def _together(gateways: Iterable[Figures]) -> dict[str, Series]:
    together: dict[str, Series] = {}
    for gateway in gateways:
        for record in gateway.records:
            definition = BY_NAME.get(record.key.metric)
            if definition is None or not _fits(definition, record.key.labels, record.values):
                continue  # of another version of this package
            series = together.setdefault(definition.name, {})
            before = series.get(record.key.labels)
            if definition.kind is Kind.GAUGE and math.isnan(record.values[0]):
                continue
            series[record.key.labels] = (
                record.values
                if before is None
                else [_one(definition, *pair) for pair in zip(before, record.values, strict=True)]
            )
    return together


def _fits(definition: Definition, labels: tuple[str, ...], values: list[float]) -> bool:
    return len(labels) == len(definition.labels) and len(values) == definition.cells


def _one(definition: Definition, first: float, second: float) -> float:
    if definition.kind is not Kind.GAUGE or definition.over is Over.SUM:
        return first + second
    return max(first, second) if definition.over is Over.MAX else min(first, second)


def _family(definition: Definition, series: Series) -> Metric:
    labels = definition.labels
    if definition.kind is Kind.COUNTER:
        counter = CounterMetricFamily(definition.name, definition.help, labels=labels)
        for values, numbers in series.items():
            counter.add_metric(values, numbers[0])
        return counter
    if definition.kind is Kind.GAUGE:
        gauge = GaugeMetricFamily(definition.name, definition.help, labels=labels)
        for values, numbers in series.items():
            gauge.add_metric(values, numbers[0])
        return gauge
    histogram = HistogramMetricFamily(definition.name, definition.help, labels=labels)
    for values, numbers in series.items():
        histogram.add_metric(values, _cumulative(definition.buckets, numbers), numbers[-1])
    return histogram


def _cumulative(bounds: tuple[float, ...], numbers: list[float]) -> list[tuple[str, float]]:
    total = 0.0
    buckets = []
    for bound, count in zip([*map(str, bounds), "+Inf"], numbers[:-1], strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
