"""What becomes of cells: rounds are merged, failures named, what is added told."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cells import (
    DIRECT,
    OURS,
    VLLM_ROUTER,
    Added,
    Cell,
    Kind,
    Measured,
    Part,
    added,
    merge_rounds,
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

    assert added(gateway, [direct, gateway]) == Added(p50_ms=0.5, p99_ms=2.0)
    assert added(direct, [direct, gateway]) == Added()


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
