"""Grafana dashboards as plain data; no panel is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aibrix_ray.observability import metrics as table
from aibrix_ray.observability import panels
from aibrix_ray.observability.metrics import Definition
from aibrix_ray.observability.panels import Build, Panel, Rows
from aibrix_ray.observability.promql import Queries

#: Of Grafana 11, which migrates it to newer ones by itself.
_SCHEMA = 39
_WINDOW = "$__rate_interval"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_GRAPH = (8, 8)
_STAT = (4, 4)


@dataclass(frozen=True, slots=True)
class _Variable:
    """A choice at the top of a dashboard: the values of `label` that `of` has."""

    label: str
    of: Definition

    @property
    def matcher(self) -> str:
        return f'{self.label}=~"${self.label}"'


_INSTANCE = _Variable("instance", table.GATEWAYS)
_MODEL = _Variable("model", table.READY)
_TENANT = _Variable("tenant", table.TENANT_REQUESTS)


@dataclass(frozen=True, slots=True)
class _Dashboard:
    name: str
    title: str
    build: Build
    variables: tuple[_Variable, ...]


_DASHBOARDS = (
    _Dashboard("overview", "aibrix_ray: overview", panels.overview, (_INSTANCE, _MODEL)),
    _Dashboard("model", "aibrix_ray: one model", panels.model, (_INSTANCE, _MODEL)),
    _Dashboard("tenant", "aibrix_ray: tenants", panels.tenant, (_INSTANCE, _TENANT)),
)


def dashboards(filters: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return Grafana's JSON models by file name without its ending.

    Args:
        filters: matchers that every query gets, such as `cluster="prod"`.
    """
    return {each.name: _dashboard(each, tuple(filters)) for each in _DASHBOARDS}


def _dashboard(dashboard: _Dashboard, filters: tuple[str, ...]) -> dict[str, Any]:
    variables = tuple((each.label, each.matcher) for each in dashboard.variables)
    rows = dashboard.build(Queries(_WINDOW, filters, variables))
    return {
        "uid": f"aibrix-ray-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["aibrix_ray"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [_source_variable(), *(_variable(v, filters) for v in dashboard.variables)]
        },
        "panels": list(_placed(rows)),
    }


def _source_variable() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }


def _variable(variable: _Variable, filters: tuple[str, ...]) -> dict[str, Any]:
    selector = Queries(_WINDOW, filters).select(variable.of)
    query = f"label_values({selector}, {variable.label})"
    return {
        "name": variable.label,
        "label": variable.label.capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": variable.label},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # A series without the label matches this too, as a request that named no model.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(rows: Rows) -> list[dict[str, Any]]:
    """Return the panels with their places, row by row from left to right."""
    placed: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": y}
        placed.append(_numbered(placed, {"type": "row", "title": row.title, "gridPos": place}))
        y += 1
        x = height = 0
        for panel in row.panels:
            w, h = _STAT if panel.kind == "stat" else _GRAPH
            if x + w > _COLUMNS:
                x, y, height = 0, y + height, 0
            place = {"h": h, "w": w, "x": x, "y": y}
            placed.append(_numbered(placed, {**_panel(panel), "gridPos": place}))
            x, height = x + w, max(height, h)
        y += height
    return placed


def _numbered(placed: Sequence[object], panel: dict[str, Any]) -> dict[str, Any]:
    return {"id": len(placed) + 1, **panel}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": expression,
            "legendFormat": legend or "__auto",
        }
        for index, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": _STAT_OPTIONS if panel.kind == "stat" else _GRAPH_OPTIONS,
    }


_STAT_OPTIONS = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
_GRAPH_OPTIONS = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
