"""The document holds the contract's keys, and the tables show losses like wins."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.cells import OURS, OURS_TCP, VLLM_ROUTER, Cell, Measured
from benchmarks.report import document, show
from tests.benchmarks.test_cells import make_cell, make_unary

_KEYS = (
    "stream_cpu_over_vllm_router",
    "unary_over_vllm_router",
    "streams_over_ray_serve_llm",
    "vllm_streams_over_vllm_serve",
)


def make_losing() -> list[Cell]:
    cells = make_unary({16: 50.0, 64: 70.0}, {16: 100.0, 64: 100.0})
    cells += [make_cell(OURS_TCP, connections, per_s=90.0) for connections in (16, 64)]
    return cells


def test_the_four_ratios_stand_at_the_top_and_are_null_where_left_out() -> None:
    result = json.loads(json.dumps(document(Measured(cells=make_losing()), {"quick": True})))

    assert [key for key in result if key in _KEYS] == list(_KEYS)
    assert result["unary_over_vllm_router"] == pytest.approx(0.5)
    assert result["over_tcp"]["unary_over_vllm_router"] == pytest.approx(0.9)
    assert result["streams_over_ray_serve_llm"] is None
    assert {"machine", "versions", "date", "cells", "left_out", "settings"} <= set(result)


def test_a_paced_stream_is_told_beside_and_not_in_the_ratio_of_the_claim() -> None:
    cells = [
        make_cell(system, connections, kind="paced", cpu_us=cpu_us)
        for system, cpu_us in ((OURS, 150.0), (VLLM_ROUTER, 100.0))
        for connections in (1, 16, 64)
    ]

    result = document(Measured(cells=cells), {})

    assert result["paced_stream_cpu_over_vllm_router"] == pytest.approx(1.5)
    assert result["stream_cpu_over_vllm_router"] is None


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
