"""Turns the cells of the gateway benchmark into a table for people and a document for machines."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.cells import (
    CACHE_AWARE,
    OURS,
    OURS_ALL_ON,
    OURS_TCP,
    PEERS,
    VLLM_ROUTER,
    VLLM_SERVE,
    Cell,
    Measured,
    Part,
    added,
    as_json,
    find,
)
from benchmarks.install_peers import peer_versions
from benchmarks.kept import KeptPart
from benchmarks.machine import machine, versions
from benchmarks.others import QUIET_CORES
from benchmarks.ratios import paced_ttft_added_ms, ratios

_WIDTH_WITHOUT_TERMINAL = 190


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio should be."""

    text: str
    met: Callable[[float], bool]


TARGETS: Mapping[str, Target] = {
    "unary_over_vllm_router": Target("at least 1.00", lambda ratio: ratio >= 1.0),
    "unary_cpu_over_vllm_router": Target("at most 1.00", lambda ratio: ratio <= 1.0),
    "stream_cpu_over_vllm_router": Target("at most 0.70", lambda ratio: ratio <= 0.7),
    "all_on_cpu_over_cache_aware": Target("at most 0.50", lambda ratio: ratio <= 0.5),
    "over_best_python_peer": Target("at least 5.00", lambda ratio: ratio >= 5.0),
    "streams_over_ray_serve_llm": Target("over 1.00", lambda ratio: ratio > 1.0),
    "vllm_streams_over_vllm_serve": Target("at least 0.95", lambda ratio: ratio >= 0.95),
    "paced_ttft_added_ms c1": Target("at most 1.00", lambda added_ms: added_ms <= 1.0),
    "paced_ttft_added_ms c16": Target("at most 2.00", lambda added_ms: added_ms <= 2.0),
}
_TTFT = "paced_ttft_added_ms"
#: What the row over TCP has a figure of its own for.
_TCP_RATIOS = (
    "unary_over_vllm_router",
    "unary_cpu_over_vllm_router",
    "stream_cpu_over_vllm_router",
    "over_best_python_peer",
)


def document(
    measured: Measured, settings: Mapping[str, object], kept: Mapping[Part, KeptPart] | None = None
) -> dict[str, object]:
    """Return the whole result as plain data; `measured` holds one cell for all rounds.

    `kept` are the parts that were not measured now, from an earlier result.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    kept = kept or {}
    earlier = [cell for part in kept.values() for cell in part.cells]
    cells = [*measured.cells, *earlier]
    told = [as_json(cell, cells) for cell in cells]
    dates: dict[str, str] = {cell.part: now for cell in measured.cells}
    all_settings = dict(settings)
    for part, found in kept.items():
        dates[part] = found.date
        all_settings[part] = found.settings
    return {
        **ratios(cells),
        _TTFT: paced_ttft_added_ms(cells),
        "over_tcp": _tcp_ratios(cells),
        "targets": {name: target.text for name, target in TARGETS.items()},
        "quiet": is_quiet(cells),
        "date": now,
        "dates": dates,
        "machine": machine(),
        "versions": {**versions(), **peer_versions()},
        "settings": all_settings,
        "left_out": dict(measured.left_out),
        "failed": dict(measured.failed),
        "peers": {
            peer: [cell for cell in told if cell["system"] == peer]
            for peer in PEERS
            if any(cell.system == peer for cell in cells)
        },
        "cells": told,
    }


def show(measured: Measured) -> None:
    """Print the tables, the ratios with their targets, and all that is missing."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
    if any(cell.part == "mock" for cell in measured.cells):
        console.print(_mock_table(measured.cells))
    if any(cell.part == "engine" for cell in measured.cells):
        console.print(_engine_table(measured.cells))
    console.print(_ratio_table(measured.cells))
    if not is_quiet(measured.cells):
        console.print(
            f"THE MACHINE WAS NOT QUIET: others kept up to {_foreign_cores(measured.cells):.2f} "
            "cores busy during a cell; do not trust these figures",
            highlight=False,
        )
    for name, reason in measured.left_out.items():
        console.print(f"left out: {name}: {reason}", highlight=False, markup=False)
    for name, reason in measured.failed.items():
        console.print(f"NOT MEASURED: {name}: {reason}", highlight=False, markup=False)


def is_quiet(cells: Sequence[Cell]) -> bool:
    """Whether others left the machine alone in every cell."""
    return _foreign_cores(cells) <= QUIET_CORES


def _foreign_cores(cells: Sequence[Cell]) -> float:
    return max((cell.foreign_cores for cell in cells), default=0.0)


def _tcp_ratios(cells: Sequence[Cell]) -> dict[str, float | None]:
    found = ratios(cells, ours=OURS_TCP)
    return {**{name: found[name] for name in _TCP_RATIOS}, **_ttft_rows(cells, ours=OURS_TCP)}


def _ttft_rows(cells: Sequence[Cell], *, ours: str = OURS) -> dict[str, float | None]:
    found = paced_ttft_added_ms(cells, ours=ours)
    return {f"{_TTFT} {connections}": value for connections, value in found.items()}


def _mock_table(cells: Sequence[Cell]) -> Table:
    title = (
        "Gateways before two mock backends; x: over vllm-router under the same load "
        f"({OURS_ALL_ON}: over {CACHE_AWARE}); +: added to direct"
    )
    times = ("TTFT p50", "+", "p99 ms", "p50 ms", "p99 ms", "+p50", "+p99")
    columns = ("per s", "x", *times, "CPU us", "x", "RSS MB")

    def row(cell: Cell) -> tuple[str, ...]:
        rival = CACHE_AWARE if cell.system == OURS_ALL_ON else VLLM_ROUTER
        peer = find(cells, "mock", rival, cell.kind, cell.connections)
        plus = added(cell, cells)
        return (
            format(cell.per_s, ",.0f" if cell.per_s >= 1000 else ".1f"),
            _quotient(cell, peer, _per_s),
            _number(cell.ttft_p50_ms, ".2f"),
            _number(plus.ttft_p50_ms, "+.2f"),
            _number(cell.ttft_p99_ms, ".2f"),
            f"{cell.p50_ms:.2f}",
            f"{cell.p99_ms:.2f}",
            _number(plus.p50_ms, "+.2f"),
            _number(plus.p99_ms, "+.2f"),
            _number(cell.cpu_us_per_request, ".1f"),
            _quotient(cell, peer, _cpu_us),
            _number(cell.rss_mb, ".0f"),
        )

    return _table(title, columns, _groups(cells, "mock"), row)


def _engine_table(cells: Sequence[Cell]) -> Table:
    title = "Real vLLM on the CPU, streams of 32 tokens; x: over vllm serve alone"
    times = ("TTFT p50 ms", "p99", "E2E p50 ms", "p99")
    columns = ("streams/s", "x", "rounds", *times, "CPU ms", "RSS MB", "ready s")

    def row(cell: Cell) -> tuple[str, ...]:
        alone = find(cells, "engine", VLLM_SERVE, cell.kind, cell.connections)
        cpu_us = cell.cpu_us_per_request
        return (
            f"{cell.per_s:.1f}",
            _quotient(cell, alone, _per_s),
            " ".join(f"{value:.1f}" for value in cell.rounds_per_s),
            _number(cell.ttft_p50_ms, ".1f"),
            _number(cell.ttft_p99_ms, ".1f"),
            f"{cell.p50_ms:.1f}",
            f"{cell.p99_ms:.1f}",
            _number(None if cpu_us is None else cpu_us / 1e3, ".1f"),
            _number(cell.rss_mb, ".0f"),
            _number(cell.ready_s, ".0f"),
        )

    return _table(title, columns, _groups(cells, "engine"), row)


def _table(
    title: str,
    columns: Sequence[str],
    groups: Sequence[Sequence[Cell]],
    row: Callable[[Cell], tuple[str, ...]],
) -> Table:
    table = Table(title=title)
    for name in ("load", "system"):
        table.add_column(name, no_wrap=True)
    for name in (*columns, "load avg", "others", "errors"):
        table.add_column(name, justify="right")
    for group in groups:
        for cell in group:
            load = f"{cell.kind}, c={cell.connections}" if cell is group[0] else ""
            end = (f"{cell.load_before:.1f}", f"{cell.foreign_cores:.2f}", str(cell.errors or ""))
            last = cell is group[-1]
            table.add_row(load, cell.system, *row(cell), *end, end_section=last)
    return table


def _ratio_table(cells: Sequence[Cell]) -> Table:
    table = Table(title="Ours over the peers, the worst cell of each")
    table.add_column("ratio", no_wrap=True)
    for name in ("Unix sockets", "", "TCP", "", "target"):
        table.add_column(name, justify="right")
    over_tcp = _tcp_ratios(cells)
    for name, ratio in {**ratios(cells), **_ttft_rows(cells)}.items():
        target = TARGETS[name]
        columns = [_number(ratio, ".3f"), _verdict(ratio, target)]
        if name in over_tcp:
            columns += [_number(over_tcp[name], ".3f"), _verdict(over_tcp[name], target)]
        else:
            columns += ["", ""]
        table.add_row(name, *columns, target.text)
    return table


def _groups(cells: Sequence[Cell], part: Part) -> list[list[Cell]]:
    """Return the cells that stand under the same load together, in the order of their loads."""
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        if cell.part == part:
            groups.setdefault((cell.kind, cell.connections), []).append(cell)
    return list(groups.values())


def _verdict(ratio: float | None, target: Target) -> str:
    if ratio is None:
        return "not measured"
    return "met" if target.met(ratio) else "MISSED"


def _quotient(cell: Cell, other: Cell | None, read: Callable[[Cell], float | None]) -> str:
    own, base = read(cell), read(other) if other is not None else None
    return f"{own / base:.2f}" if own is not None and base else ""


def _per_s(cell: Cell) -> float:
    return cell.per_s


def _cpu_us(cell: Cell) -> float | None:
    return cell.cpu_us_per_request


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
