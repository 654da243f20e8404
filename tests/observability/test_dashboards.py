"""U60: every query of every dashboard parses, with variables set or not, and names what exists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from aibrix_ray.observability import dashboards
from tests.observability.conftest import Exported
from tests.observability.queries import SCRAPED, filled, targets, used

VARIABLES = ("instance", "model", "tenant")
FILTERS: dict[str, tuple[str, ...]] = {
    "none": (),
    "empty": ("",),
    "one": ('cluster="prod"',),
    "two": ('cluster="prod"', 'team!~"a|b"'),
}
VALUES = ["", ".*", "m", "a|b", r"org/m\\.1"]
NAMES = sorted(dashboards())


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NAMES)
async def test_u60_every_query_parses_and_names_what_is_exported(
    name: str, value: str, filters: tuple[str, ...], exported: Exported
) -> None:
    variables = dict.fromkeys(VARIABLES, value)
    queries = list(targets(dashboards(filters)[name]))
    assert len(queries) > 3
    for title, query in queries:
        found = used(filled(query, variables))
        assert found.matched, f"{title}: no metric"
        known = {"le", *SCRAPED}
        for sample, labels in found.matched.items():
            assert sample in exported, f"{title}: {sample} is not exported"
            extra = {"cluster", "team"} if any(filters) else set()
            assert labels <= exported[sample] | SCRAPED | extra, f"{title}: {sample}"
            known |= exported[sample]
        assert found.grouped <= known, f"{title}: grouped by a label that is not there"


@pytest.mark.parametrize("name", NAMES)
async def test_the_choices_come_from_series_that_exist(name: str, exported: Exported) -> None:
    for variable in _variables(dashboards()[name])[1:]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert found is not None
        assert found[2] in exported[found[1]] | SCRAPED
        assert found[2] == variable["name"]


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_used_and_every_one_used_is_there(name: str) -> None:
    dashboard = dashboards()[name]
    queries = " ".join(query for _, query in targets(dashboard))
    used_names = set(re.findall(r"\$(\w+)", queries)) - {"__rate_interval", "__range"}
    assert used_names == {v["name"] for v in _variables(dashboard)} - {"datasource"}


@pytest.mark.parametrize("name", NAMES)
def test_filters_are_in_every_selector(name: str) -> None:
    for _, query in targets(dashboards(FILTERS["two"])[name]):
        for labels in used(filled(query, dict.fromkeys(VARIABLES, ".*"))).matched.values():
            assert {"cluster", "team"} <= labels


@pytest.mark.parametrize("name", NAMES)
def test_panels_are_numbered_and_do_not_overlap(name: str) -> None:
    panels = dashboards()[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboards_are_json_and_have_names_of_their_own() -> None:
    made = dashboards()
    assert json.loads(json.dumps(made)) == made
    assert len({each["uid"] for each in made.values()}) == len(made) == 3


def _variables(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = dashboard["templating"]["list"]
    return variables
