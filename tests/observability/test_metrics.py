"""The table of metrics, and what is exported of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aibrix_ray.observability import BY_NAME, METRICS, Definition, Kind, reference
from tests.observability.conftest import Exported

ROOT = Path(__file__).parents[2]


def test_names_are_unique_and_say_kind_and_unit() -> None:
    assert len(BY_NAME) == len(METRICS)
    for each in METRICS:
        assert re.fullmatch(r"aibrix_ray_[a-z0-9_]+", each.name)
        assert each.name.endswith("_total") == (each.kind is Kind.COUNTER), each.name
        assert not re.search(r"_(s|ms|latency)$", each.name), each.name


@pytest.mark.parametrize("each", METRICS, ids=lambda each: each.name)
def test_a_definition_is_complete(each: Definition) -> None:
    assert each.help.endswith(".") or each.kind is Kind.GAUGE
    assert bool(each.buckets) == (each.kind is Kind.HISTOGRAM)
    assert list(each.buckets) == sorted(set(each.buckets))
    assert not {"le", "instance", "job"} & set(each.labels), "taken by Prometheus"


async def test_every_definition_is_exported_with_its_labels_and_nothing_else(
    exported: Exported,
) -> None:
    expected = {
        sample: {*each.labels, *({"le"} if sample.endswith("_bucket") else ())}
        for each in METRICS
        for sample in each.samples
    }
    assert exported == expected


def test_the_documentation_lists_what_is_exported() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert reference() in page, "put the output of aibrix_ray.observability.reference() there"
