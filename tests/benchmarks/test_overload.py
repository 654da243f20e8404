"""The overload result draws its figures from the right loads, and names what was missed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.overload import CLAIMS, document, show


def make_load(goodput_per_s: float, **changes: Any) -> dict[str, Any]:
    load: dict[str, Any] = {
        "offered_per_s": 100.0,
        "goodput_per_s": goodput_per_s,
        "statuses": {"200": 900},
        "good_p50_ms": 100.0,
        "good_p99_ms": 200.0,
        "refused": 0,
        "refused_p99_ms": 2.0,
        "refused_max_ms": 9.0,
        "refused_without_retry_after": 0,
        "timeouts": 0,
        "broken": 0,
        "first_problem": "",
    }
    return {**load, **changes}


def make_result(**changes: Any) -> dict[str, Any]:
    seen = {
        "peak": make_load(100.0),
        "at 1x": make_load(95.0),
        "at 4x": make_load(96.0, statuses={"200": 900, "429": 2700}, **changes),
    }
    return document(seen, quick=True, foreign_cores=0.0)


def test_goodput_is_held_against_the_highest_that_was_seen() -> None:
    result = json.loads(json.dumps(make_result()))

    assert result["goodput_over_peak"] == pytest.approx(0.96)
    assert result["neither_200_nor_429"] == 0
    assert {"machine", "versions", "date", "settings", "targets", "quiet"} <= set(result)


def test_every_other_answer_and_every_broken_connection_counts() -> None:
    seen = {
        "peak": make_load(100.0),
        "at 1x": make_load(95.0),
        "at 4x": make_load(96.0, statuses={"200": 1, "429": 2, "500": 3, "503": 4}, broken=5),
    }

    assert document(seen, quick=True, foreign_cores=0.0)["neither_200_nor_429"] == 12


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"refused_max_ms": 51.0}, ["refused_max_ms"]),
        ({"refused_without_retry_after": 1}, ["refused_without_retry_after"]),
        ({"timeouts": 1}, ["timeouts"]),
        ({"broken": 1}, ["neither_200_nor_429"]),
    ],
)
def test_what_was_missed_is_printed(
    changes: dict[str, Any], missed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    show(make_result(**changes))

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "MISSED" in line] == missed
    assert sum("met" in line for line in lines) == len(CLAIMS) - len(missed)
