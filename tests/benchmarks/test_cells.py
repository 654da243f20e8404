"""The ratios take the worst cell, and say nothing where a cell is missing or had errors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cells import (
    DIRECT,
    OURS,
    OURS_TCP,
    RAY_SERVE_LLM,
    RAY_SERVE_LLM_BEST,
    VLLM_ROUTER,
    VLLM_SERVE,
    Cell,
    Kind,
    Measured,
    Part,
    added_ms,
    merge_rounds,
    ratios,
)
from benchmarks.processes import NotMeasured


def make_cell(
    system: str,
    connections: int,
    *,
    part: Part = "mock",
    kind: Kind = "unary",
    per_s: float = 100.0,
    cpu_us: float | None = 10.0,
    errors: int = 0,
) -> Cell:
    return Cell(
        part=part,
        system=system,
        kind=kind,
        connections=connections,
        per_s=per_s,
        p50_ms=1.0,
        p99_ms=2.0,
        requests=1000,
        errors=errors,
        load_before=0.0,
        cpu_us_per_request=cpu_us,
    )


def make_unary(ours: dict[int, float], theirs: dict[int, float]) -> list[Cell]:
    return [
        make_cell(system, connections, per_s=per_s)
        for system, rates in ((OURS, ours), (VLLM_ROUTER, theirs))
        for connections, per_s in rates.items()
    ]


def make_streams(rates: dict[str, dict[int, float]]) -> list[Cell]:
    return [
        make_cell(system, connections, part="engine", kind="stream", per_s=per_s)
        for system, by_connections in rates.items()
        for connections, per_s in by_connections.items()
    ]


def test_the_stream_cpu_ratio_is_the_largest_of_all_cells() -> None:
    cells = [
        make_cell(system, connections, kind="stream", cpu_us=cpu_us)
        for system, costs in ((OURS, (30.0, 60.0, 20.0)), (VLLM_ROUTER, (100.0, 100.0, 100.0)))
        for connections, cpu_us in zip((1, 16, 64), costs, strict=True)
    ]

    assert ratios(cells)["stream_cpu_over_vllm_router"] == pytest.approx(0.6)


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


def test_rounds_merge_into_medians_and_summed_errors() -> None:
    rounds = [
        make_cell(OURS, 16, per_s=per_s, errors=errors)
        for per_s, errors in ((100.0, 0), (300.0, 1), (120.0, 0))
    ]

    (merged,) = merge_rounds(rounds)

    assert merged.per_s == 120.0
    assert merged.errors == 1
    assert merged.rounds_per_s == (100.0, 300.0, 120.0)


def test_what_a_gateway_adds_is_counted_from_the_direct_cell() -> None:
    direct = make_cell(DIRECT, 16)
    gateway = replace(make_cell(OURS, 16), p50_ms=1.5, p99_ms=4.0)

    assert added_ms(gateway, [direct, gateway]) == (0.5, 2.0)
    assert added_ms(direct, [direct, gateway]) == (None, None)


def test_a_row_that_fails_is_named_and_the_others_go_on() -> None:
    measured = Measured()

    def fails() -> list[Cell]:
        raise NotMeasured("it ended")

    measured.attempt(VLLM_ROUTER, fails)
    measured.attempt(OURS, lambda: [make_cell(OURS, 16)])

    assert measured.failed == {VLLM_ROUTER: "it ended"}
    assert len(measured.cells) == 1


def test_a_cell_with_errors_is_named_as_failed() -> None:
    whole = Measured()

    whole.take(Measured(cells=[make_cell(OURS, 16, errors=3)]))

    assert list(whole.failed) == ["ours, mock, unary, 16 connections"]


def test_a_cell_at_another_nice_value_is_no_comparison() -> None:
    cells = [replace(cell, nice=15) for cell in make_unary({16: 9.0, 64: 9.0}, {16: 1.0, 64: 1.0})]
    whole = Measured()

    whole.take(Measured(cells=cells))

    assert len(whole.failed) == 4
    assert ratios(whole.cells)["unary_over_vllm_router"] is None
