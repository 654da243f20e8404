"""The ratios take the worst cell, and say nothing where a cell is missing or had errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from benchmarks.cells import (
    CACHE_AWARE,
    DIRECT,
    LITELLM,
    OURS,
    OURS_ALL_ON,
    OURS_TCP,
    RAY_SERVE_LLM,
    RAY_SERVE_LLM_BEST,
    SERVE_INGRESS,
    VLLM_ROUTER,
    VLLM_SERVE,
    Cell,
    Kind,
)
from benchmarks.ratios import paced_ttft_added_ms, ratios
from tests.benchmarks.test_cells import make_cell, make_unary


def make_costs(costs: Mapping[str, tuple[float, ...]], kind: Kind) -> list[Cell]:
    """Return cells at 1, 16 and 64 connections, by the CPU they cost."""
    return [
        make_cell(system, connections, kind=kind, cpu_us=cpu_us)
        for system, by_size in costs.items()
        for connections, cpu_us in zip((1, 16, 64), by_size, strict=True)
    ]


def make_streams(rates: dict[str, dict[int, float]]) -> list[Cell]:
    return [
        make_cell(system, connections, part="engine", kind="stream", per_s=per_s)
        for system, by_connections in rates.items()
        for connections, per_s in by_connections.items()
    ]


@pytest.mark.parametrize("worst", ["stream", "paced"])
def test_the_stream_cpu_ratio_is_the_largest_of_all_cells_paced_ones_too(worst: Kind) -> None:
    kinds: list[Kind] = ["stream", "paced"]
    cells = []
    for kind in kinds:
        ours = (30.0, 60.0, 20.0) if kind == worst else (10.0, 10.0, 10.0)
        cells += make_costs({OURS: ours, VLLM_ROUTER: (100.0, 100.0, 100.0)}, kind)

    assert ratios(cells)["stream_cpu_over_vllm_router"] == pytest.approx(0.6)


def test_without_paced_streams_there_is_no_stream_cpu_ratio() -> None:
    cells = make_costs({OURS: (1.0, 1.0, 1.0), VLLM_ROUTER: (2.0, 2.0, 2.0)}, "stream")

    assert ratios(cells)["stream_cpu_over_vllm_router"] is None


def test_the_unary_cpu_ratio_counts_one_connection_too() -> None:
    cells = make_costs({OURS: (90.0, 50.0, 50.0), VLLM_ROUTER: (100.0, 100.0, 100.0)}, "unary")

    assert ratios(cells)["unary_cpu_over_vllm_router"] == pytest.approx(0.9)


def test_all_on_is_held_against_the_cache_aware_router() -> None:
    kinds: list[Kind] = ["unary", "stream", "paced"]
    costs = {OURS_ALL_ON: (40.0, 45.0, 30.0), CACHE_AWARE: (100.0, 100.0, 100.0)}
    cells = [cell for kind in kinds for cell in make_costs(costs, kind)]

    assert ratios(cells)["all_on_cpu_over_cache_aware"] == pytest.approx(0.45)
    assert ratios(cells[3:])["all_on_cpu_over_cache_aware"] is None


def test_the_ratio_over_python_is_against_the_faster_one_in_each_cell_and_needs_both() -> None:
    rates = {OURS: (100.0, 100.0), LITELLM: (1.0, 10.0), SERVE_INGRESS: (5.0, 20.0)}
    kinds: list[Kind] = ["unary", "stream"]
    cells = [
        make_cell(system, connections, kind=kind, per_s=per_s)
        for kind in kinds
        for system, by_size in rates.items()
        for connections, per_s in zip((1, 16), by_size, strict=True)
    ]

    assert ratios(cells)["over_best_python_peer"] == pytest.approx(5.0)
    one = [cell for cell in cells if cell.system != LITELLM]
    assert ratios(one)["over_best_python_peer"] is None


def test_what_is_added_to_the_first_token_is_told_by_connections() -> None:
    cells = [
        replace(make_cell(system, connections, kind="paced"), ttft_p50_ms=ttft_ms)
        for system, by_size in ((DIRECT, (0.2, 0.5)), (OURS, (0.9, 1.5)))
        for connections, ttft_ms in zip((1, 16), by_size, strict=True)
    ]

    assert paced_ttft_added_ms(cells) == pytest.approx({"c1": 0.7, "c16": 1.0})
    failing = [replace(cell, errors=1) for cell in cells]
    assert paced_ttft_added_ms(failing) == {"c1": None, "c16": None}


def test_a_size_that_only_one_of_them_has_leaves_the_ratio_out() -> None:
    cells = make_unary({16: 1.0, 64: 1.0, 256: 1.0}, {16: 1.0, 64: 1.0})

    assert ratios(cells)["unary_over_vllm_router"] is None


def test_a_cell_at_another_nice_value_leaves_its_ratio_out() -> None:
    cells = [replace(cell, nice=15) for cell in make_unary({16: 9.0, 64: 9.0}, {16: 1.0, 64: 1.0})]

    assert ratios(cells)["unary_over_vllm_router"] is None


def test_the_unary_ratio_is_the_smallest_of_16_and_64_and_leaves_1_aside() -> None:
    cells = make_unary({1: 10.0, 16: 120.0, 64: 90.0}, {1: 100.0, 16: 100.0, 64: 100.0})

    assert ratios(cells)["unary_over_vllm_router"] == pytest.approx(0.9)


def test_the_unary_ratio_needs_both_sizes() -> None:
    cells = make_unary({16: 120.0}, {16: 100.0})

    assert ratios(cells)["unary_over_vllm_router"] is None


def test_the_ratio_over_vllm_serve_is_the_smallest() -> None:
    cells = make_streams({OURS: {1: 99.0, 8: 97.0}, VLLM_SERVE: {1: 100.0, 8: 100.0}})

    assert ratios(cells)["vllm_streams_over_vllm_serve"] == pytest.approx(0.97)


def test_the_ratio_over_ray_serve_llm_is_against_its_faster_mode_in_each_cell() -> None:
    rates = {
        OURS: {1: 100.0, 8: 100.0},
        RAY_SERVE_LLM_BEST: {1: 50.0, 8: 80.0},
        RAY_SERVE_LLM: {1: 90.0, 8: 10.0},
    }

    assert ratios(make_streams(rates))["streams_over_ray_serve_llm"] == pytest.approx(100 / 90)


def test_the_ratio_over_ray_serve_llm_needs_its_best_mode() -> None:
    cells = make_streams({OURS: {1: 100.0}, RAY_SERVE_LLM: {1: 50.0}})

    assert ratios(cells)["streams_over_ray_serve_llm"] is None


def test_all_ratios_are_none_where_nothing_was_measured() -> None:
    assert set(ratios([]).values()) == {None}


@pytest.mark.parametrize("system", [OURS, VLLM_ROUTER])
def test_a_peer_or_ours_left_out_leaves_its_ratio_out(system: str) -> None:
    cells = make_unary({16: 100.0, 64: 100.0}, {16: 100.0, 64: 100.0})

    left = [cell for cell in cells if cell.system != system]

    assert ratios(left)["unary_over_vllm_router"] is None


@pytest.mark.parametrize("system", [OURS, VLLM_ROUTER])
def test_a_cell_with_errors_leaves_its_ratio_out(system: str) -> None:
    cells = make_unary({16: 100.0, 64: 100.0}, {16: 100.0, 64: 100.0})

    failing = [replace(cell, errors=1) if cell.system == system else cell for cell in cells]

    assert ratios(failing)["unary_over_vllm_router"] is None


def test_the_row_over_tcp_has_ratios_of_its_own() -> None:
    cells = make_unary({16: 100.0, 64: 100.0}, {16: 100.0, 64: 100.0})
    cells += [make_cell(OURS_TCP, connections, per_s=70.0) for connections in (16, 64)]

    assert ratios(cells)["unary_over_vllm_router"] == pytest.approx(1.0)
    assert ratios(cells, ours=OURS_TCP)["unary_over_vllm_router"] == pytest.approx(0.7)
