"""The document holds the contract's keys, and the tables show losses like wins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cells import OURS, OURS_TCP, VLLM_ROUTER, VLLM_SERVE, Cell, Measured
from benchmarks.kept import read_part
from benchmarks.report import document, show
from tests.benchmarks.test_cells import make_cell, make_unary

_KEYS = (
    "unary_over_vllm_router",
    "unary_cpu_over_vllm_router",
    "stream_cpu_over_vllm_router",
    "all_on_cpu_over_cache_aware",
    "over_best_python_peer",
    "streams_over_ray_serve_llm",
    "vllm_streams_over_vllm_serve",
)


def make_losing() -> list[Cell]:
    cells = make_unary({16: 50.0, 64: 70.0}, {16: 100.0, 64: 100.0})
    cells += [make_cell(OURS_TCP, connections, per_s=90.0) for connections in (16, 64)]
    return cells


def test_the_ratios_stand_at_the_top_and_are_null_where_left_out() -> None:
    result = json.loads(json.dumps(document(Measured(cells=make_losing()), {"quick": True})))

    assert [key for key in result if key in _KEYS] == list(_KEYS)
    assert result["unary_over_vllm_router"] == pytest.approx(0.5)
    assert result["over_tcp"]["unary_over_vllm_router"] == pytest.approx(0.9)
    assert result["streams_over_ray_serve_llm"] is None
    assert {"machine", "versions", "date", "cells", "left_out", "settings"} <= set(result)


def test_peers_are_told_by_name_with_their_cells() -> None:
    result = document(Measured(cells=make_losing()), {})

    peers = result["peers"]
    assert isinstance(peers, dict)
    assert list(peers) == [VLLM_ROUTER]
    assert [cell["connections"] for cell in peers[VLLM_ROUTER]] == [16, 64]


def test_a_part_that_was_not_measured_now_is_kept_with_its_date(tmp_path: Path) -> None:
    engine = [
        make_cell(system, connections, part="engine", kind="stream", per_s=90.0)
        for system in (OURS, VLLM_SERVE)
        for connections in (1, 8)
    ]
    earlier = document(Measured(cells=[*make_losing(), *engine]), {"engine": {"rounds": 3}})
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**earlier, "date": "then", "dates": {"engine": "then"}}))

    kept = read_part(path, "engine")
    assert kept is not None
    result = document(Measured(cells=make_losing()), {"mock": {}}, {"engine": kept})

    assert result["vllm_streams_over_vllm_serve"] == pytest.approx(1.0)
    assert result["unary_over_vllm_router"] == pytest.approx(0.5)
    assert result["dates"] == {"mock": result["date"], "engine": "then"}
    assert result["settings"] == {"mock": {}, "engine": {"rounds": 3}}


def test_nothing_is_kept_where_there_is_no_result(tmp_path: Path) -> None:
    assert read_part(tmp_path / "none.json", "engine") is None


def test_the_tables_name_losses_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [replace(cell, errors=0) for cell in make_losing()]

    show(Measured(cells=cells, left_out={"peer": "not here"}, failed={"other": "it ended"}))

    printed = capsys.readouterr().out
    assert "MISSED" in printed
    assert "left out: peer: not here" in printed
    assert "NOT MEASURED: other: it ended" in printed
    assert VLLM_ROUTER in printed


def test_a_disturbed_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [replace(cell, foreign_cores=1.5) for cell in make_losing()]

    show(Measured(cells=cells))

    assert "NOT QUIET" in capsys.readouterr().out
    assert document(Measured(cells=cells), {})["quiet"] is False
    assert document(Measured(cells=make_losing()), {})["quiet"] is True
