"""PromQL read by a real parser: which metrics, labels and matchers a query uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import promql_parser

#: Labels that Prometheus adds to every series that it scrapes.
SCRAPED = {"instance", "job"}


@dataclass
class Used:
    """What a query uses: samples by name with the labels they are matched on, grouping labels."""

    matched: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)


def filled(query: str, variables: Mapping[str, str], window: str = "5m") -> str:
    """Return a dashboard's query as Grafana sends it."""
    for name, value in {"__rate_interval": window, "__range": "1h", **variables}.items():
        query = query.replace(f"${name}", value)
    assert "$" not in query, f"an unknown variable: {query}"
    return query


def used(query: str) -> Used:
    """Parse a query. Raises `ValueError` where it is none."""
    found = Used()

    def visit(expression: promql_parser.Expr) -> bool:
        if isinstance(expression, promql_parser.VectorSelector):
            assert expression.name is not None, f"a selector without a name: {query}"
            labels = found.matched.setdefault(expression.name, set())
            labels |= {matcher.name for matcher in expression.matchers.matchers}
        if isinstance(expression, promql_parser.AggregateExpr) and expression.modifier:
            found.grouped.update(expression.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def targets(dashboard: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the panel's title and the expression of every query of a dashboard."""
    panels = dashboard["panels"]
    assert isinstance(panels, list)
    for panel in panels:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
