"""PromQL built from definitions: a query can only name what is exported, with labels it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aibrix_ray.observability.metrics import Definition, Kind


@dataclass(frozen=True, slots=True)
class Queries:
    """Writes queries that share matchers and a window.

    Attributes:
        window: what rates are taken over, such as `5m`.
        filters: matchers that every selector has, such as `cluster="prod"`; may be empty.
        variables: label → matcher of a dashboard's variable; a selector has those of its labels.
    """

    window: str
    filters: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    def select(self, definition: Definition, *matchers: str, suffix: str = "") -> str:
        """Return a selector; without any matcher it has no braces."""
        labels = {"instance", *definition.labels}
        of_variables = (matcher for label, matcher in self.variables if label in labels)
        every = [each for each in (*self.filters, *of_variables, *matchers) if each]
        braces = f"{{{', '.join(every)}}}" if every else ""
        return f"{definition.name}{suffix}{braces}"

    def rate(self, definition: Definition, *matchers: str, by: Sequence[str] = ()) -> str:
        """Return a counter's increase a second, summed over nodes."""
        assert definition.kind is Kind.COUNTER, f"{definition.name} has no rate"
        selector = self.select(definition, *matchers)
        return f"{_by('sum', definition, by)} (rate({selector}[{self.window}]))"

    def increase(
        self, definition: Definition, *matchers: str, window: str, by: Sequence[str] = ()
    ) -> str:
        """Return how much a counter grew within `window`, summed over nodes."""
        assert definition.kind is Kind.COUNTER, f"{definition.name} has no increase"
        selector = self.select(definition, *matchers)
        return f"{_by('sum', definition, by)} (increase({selector}[{window}]))"

    def gauge(self, definition: Definition, *matchers: str, by: Sequence[str] = ()) -> str:
        """Return a gauge put together over nodes in the way it is over the gateways of a node."""
        assert definition.kind is Kind.GAUGE, f"{definition.name} is no gauge"
        over = _by(definition.over.value, definition, by)
        return f"{over} ({self.select(definition, *matchers)})"

    def quantile(self, share: float, definition: Definition, *, by: Sequence[str] = ()) -> str:
        """Return a quantile of a histogram over all nodes, within its buckets."""
        assert definition.kind is Kind.HISTOGRAM, f"{definition.name} has no quantiles"
        buckets = self.select(definition, suffix="_bucket")
        inner = f"{_by('sum', definition, ['le', *by])} (rate({buckets}[{self.window}]))"
        return f"histogram_quantile({share:g}, {inner})"


def _by(operator: str, definition: Definition, labels: Sequence[str]) -> str:
    known = {"le", "instance", *definition.labels}
    assert known.issuperset(labels), f"{definition.name} has no label of {labels}"
    return f"{operator} by ({', '.join(labels)})" if labels else operator
