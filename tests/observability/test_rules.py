"""Alert and recording rules: they parse, name what exists, and say what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aibrix_ray.observability import Thresholds, prometheus_rule, rules
from tests.observability.conftest import Exported
from tests.observability.queries import SCRAPED, used

FILTERS: dict[str, tuple[str, ...]] = {"none": (), "empty": ("",), "one": ('cluster="prod"',)}


def all_rules(filters: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [rule for group in rules(filters)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in all_rules() if "alert" in rule}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
async def test_every_expression_parses_and_names_what_is_exported_or_recorded(
    filters: tuple[str, ...], exported: Exported
) -> None:
    recorded = {rule["record"] for rule in all_rules() if "record" in rule}
    for rule in all_rules(filters):
        for sample, labels in used(rule["expr"]).matched.items():
            if sample not in recorded:
                assert sample in exported, rule
                assert labels <= exported[sample] | SCRAPED | {"cluster"}, rule
                assert ("cluster" in labels) == any(filters), rule


def test_the_alerts_are_those_that_the_documentation_promises() -> None:
    assert set(alerts()) == {
        "AibrixRayHighFailedShare",
        "AibrixRaySlowFirstToken",
        "AibrixRayQueueSaturated",
        "AibrixRayStreamsBroken",
        "AibrixRayNoReadyReplicas",
        "AibrixRayModelWithoutReplicas",
        "AibrixRayReplicaEjected",
        "AibrixRayTelemetryStale",
        "AibrixRayGatewaysAbsent",
        "AibrixRayDependencyUnreachable",
        "AibrixRayFileDescriptorsLow",
    }


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_has_what_prometheus_and_people_need(name: str) -> None:
    alert = alerts()[name]
    assert alert.keys() == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert len(alert["annotations"]["runbook"]) > 80


@pytest.mark.parametrize("name", sorted(alerts()))
def test_a_summary_uses_only_labels_that_the_alert_has(name: str) -> None:
    alert = alerts()[name]
    shown = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    grouped = used(alert["expr"]).grouped
    of_recorded = {"model"} if "model:" in alert["expr"] else set()
    assert shown <= grouped | of_recorded


def test_thresholds_are_taken() -> None:
    text = str(rules(thresholds=Thresholds(failed_share=0.25, ttft_p99_s=1.5)))
    assert "ratio_rate5m > 0.25" in text
    assert "p99_rate5m > 1.5" in text


def test_the_operators_object_holds_the_same_rules() -> None:
    assert prometheus_rule(rules())["spec"] == rules()
