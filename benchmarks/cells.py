"""What one cell of the gateway benchmark holds, and what becomes of many. Pure.

A cell is one system at one kind of load and one number of connections; over several rounds it
keeps the medians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Literal

from benchmarks.processes import NotMeasured

Part = Literal["mock", "engine"]
#: "paced" is a stream whose tokens come as an engine sends them, some milliseconds apart.
Kind = Literal["unary", "stream", "paced"]
Say = Callable[[str], None]

DIRECT = "direct"
OURS = "ours"
OURS_TCP = "ours over TCP"
#: Ours with API keys and limits on, counted and never reached.
OURS_ALL_ON = "ours, keys and limits"
#: Round robin, as every peer unless its name says otherwise.
VLLM_ROUTER = "vllm-router"
CACHE_AWARE = "vllm-router, cache-aware"
SGLANG_ROUTER = "sglang-router"
LITELLM = "LiteLLM"
SERVE_INGRESS = "Serve HAProxy, ingress"
HAPROXY = "HAProxy"
VLLM_SERVE = "vllm serve"
RAY_SERVE_LLM = "ray.serve.llm"
RAY_SERVE_LLM_BEST = "ray.serve.llm, best"

#: Who else stands before the mocks; none of them is ours.
PEERS = (VLLM_ROUTER, CACHE_AWARE, SGLANG_ROUTER, LITELLM, SERVE_INGRESS, HAPROXY)
PYTHON_PEERS = (LITELLM, SERVE_INGRESS)


@dataclass(frozen=True, slots=True)
class Cell:
    """One system under one load. Times are in the unit the name says."""

    part: Part
    system: str
    kind: Kind
    connections: int
    #: Whole answers (or whole streams) a second.
    per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    #: Answers that were not 2xx, were cut or too short, and socket errors.
    errors: int
    #: Load average of the last minute, just before.
    load_before: float
    #: Cores that processes which are not the benchmark's kept busy meanwhile.
    foreign_cores: float = 0.0
    #: CPU of all processes of the system; None for the mock itself.
    cpu_us_per_request: float | None = None
    rss_mb: float | None = None
    #: The highest nice value among its processes.
    nice: int = 0
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    #: On the wire, head and chunk sizes included.
    bytes_per_request: float | None = None
    #: Reads of the client's socket a stream, the head of the answer included.
    arrivals_per_stream: float | None = None
    first_error: str = ""
    #: Seconds from start to the first answer (real engines only).
    ready_s: float | None = None
    #: `per_s` of each round.
    rounds_per_s: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes it the same cell in another round."""
        return (self.part, self.system, self.kind, self.connections)


@dataclass(slots=True)
class Measured:
    """All cells of all rounds; what was left out on purpose; what failed."""

    cells: list[Cell] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def attempt(self, system: str, cells: Callable[[], list[Cell]]) -> None:
        """Take the cells of one system in one round, or the reason why there are none."""
        try:
            self.cells += cells()
        except NotMeasured as error:
            self.failed[system] = str(error)

    def take(self, rounds: Measured) -> None:
        """Add another part, one cell for all its rounds; one with errors or niced has failed."""
        for cell in merge_rounds(rounds.cells):
            self.cells.append(cell)
            load = f"{cell.system}, {cell.part}, {cell.kind}, {cell.connections} connections"
            if cell.errors:
                count = f"{cell.errors} errors, {cell.requests} good answers"
                self.failed[load] = f"{count}; {cell.first_error}".removesuffix("; ")
            elif cell.nice:
                self.failed[load] = f"ran at nice {cell.nice}, which is no comparison"
        self.left_out |= rounds.left_out
        self.failed |= rounds.failed


def merge_rounds(cells: Iterable[Cell]) -> list[Cell]:
    """Return one cell for all rounds of the same one: medians, and the sum of its errors."""
    rounds: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in cells:
        rounds.setdefault(cell.key, []).append(cell)
    return [_merge(same) for same in rounds.values()]


def _merge(rounds: Sequence[Cell]) -> Cell:
    def middle(read: Callable[[Cell], float | None]) -> float | None:
        seen = [value for value in map(read, rounds) if value is not None]
        return median(seen) if seen else None

    first = rounds[0]
    return Cell(
        part=first.part,
        system=first.system,
        kind=first.kind,
        connections=first.connections,
        per_s=median(cell.per_s for cell in rounds),
        p50_ms=median(cell.p50_ms for cell in rounds),
        p99_ms=median(cell.p99_ms for cell in rounds),
        requests=sum(cell.requests for cell in rounds),
        errors=sum(cell.errors for cell in rounds),
        load_before=max(cell.load_before for cell in rounds),
        foreign_cores=max(cell.foreign_cores for cell in rounds),
        cpu_us_per_request=middle(lambda cell: cell.cpu_us_per_request),
        rss_mb=middle(lambda cell: cell.rss_mb),
        nice=max(cell.nice for cell in rounds),
        ttft_p50_ms=middle(lambda cell: cell.ttft_p50_ms),
        ttft_p99_ms=middle(lambda cell: cell.ttft_p99_ms),
        bytes_per_request=middle(lambda cell: cell.bytes_per_request),
        arrivals_per_stream=middle(lambda cell: cell.arrivals_per_stream),
        first_error=next((cell.first_error for cell in rounds if cell.first_error), ""),
        ready_s=middle(lambda cell: cell.ready_s),
        rounds_per_s=tuple(cell.per_s for cell in rounds),
    )


def find(
    cells: Iterable[Cell], part: Part, system: str, kind: Kind, connections: int
) -> Cell | None:
    """Return that cell, or None where it was not measured."""
    wanted = (part, system, kind, connections)
    return next((cell for cell in cells if cell.key == wanted), None)


@dataclass(frozen=True, slots=True)
class Added:
    """What a system adds to the backend's own times; None where there is nothing to compare."""

    p50_ms: float | None = None
    p99_ms: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None


def added(cell: Cell, cells: Sequence[Cell]) -> Added:
    """Return what the system adds to the direct cell of the same load."""
    base_name = DIRECT if cell.part == "mock" else VLLM_SERVE
    base = find(cells, cell.part, base_name, cell.kind, cell.connections)
    if base is None or cell.system == base_name:
        return Added()
    return Added(
        p50_ms=cell.p50_ms - base.p50_ms,
        p99_ms=cell.p99_ms - base.p99_ms,
        ttft_p50_ms=_difference(cell.ttft_p50_ms, base.ttft_p50_ms),
        ttft_p99_ms=_difference(cell.ttft_p99_ms, base.ttft_p99_ms),
    )


def as_json(cell: Cell, cells: Sequence[Cell]) -> dict[str, object]:
    """Return the cell as plain data, with what it adds to the direct one beside it."""
    told = {f"added_{name}": value for name, value in asdict(added(cell, cells)).items()}
    return {**asdict(cell), **told}


def _difference(own: float | None, base: float | None) -> float | None:
    return None if own is None or base is None else own - base
