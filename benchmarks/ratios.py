"""The figures that the gateway benchmark's claims are judged by, drawn from its cells. Pure.

A ratio is always the worst of the cells it is drawn from, and there is none where a cell it needs
is missing or had errors: a gateway that fails fast must not look fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.cells import (
    CACHE_AWARE,
    OURS,
    OURS_ALL_ON,
    PYTHON_PEERS,
    RAY_SERVE_LLM,
    RAY_SERVE_LLM_BEST,
    VLLM_ROUTER,
    VLLM_SERVE,
    Cell,
    Kind,
    Part,
    added,
    find,
)

#: What requests a second are compared at: at one connection, latency decides.
_LOADED = (16, 64)
#: Where the first token of a paced stream is timed.
_TTFT_CONNECTIONS = (1, 16)

_Read = Callable[[Cell], float | None]
_Pick = Callable[[Iterable[float]], float]


def ratios(cells: Sequence[Cell], *, ours: str = OURS) -> dict[str, float | None]:
    """Return the figures that stand at the top of the result; None where one was left out."""
    mock, engine = _Cells(cells, "mock"), _Cells(cells, "engine")
    router = [VLLM_ROUTER]
    streams: list[Kind] = ["stream", "paced"]
    return {
        "unary_over_vllm_router": mock.worst(["unary"], ours, router, _per_s, min, loaded=True),
        "unary_cpu_over_vllm_router": mock.worst(["unary"], ours, router, _cpu, max),
        "stream_cpu_over_vllm_router": mock.worst(streams, ours, router, _cpu, max),
        "all_on_cpu_over_cache_aware": mock.worst(
            ["unary", *streams], OURS_ALL_ON, [CACHE_AWARE], _cpu, max
        ),
        # The rate of a paced stream is its pace, whoever forwards it.
        "over_best_python_peer": mock.worst(["unary", "stream"], ours, PYTHON_PEERS, _per_s, min),
        "streams_over_ray_serve_llm": engine.worst(
            ["stream"], ours, [RAY_SERVE_LLM_BEST], _per_s, min, also=[RAY_SERVE_LLM]
        ),
        "vllm_streams_over_vllm_serve": engine.worst(["stream"], ours, [VLLM_SERVE], _per_s, min),
    }


def paced_ttft_added_ms(cells: Sequence[Cell], *, ours: str = OURS) -> dict[str, float | None]:
    """Return what we add to the median time to the first token, by connections ("c1", "c16")."""
    found = {}
    for connections in _TTFT_CONNECTIONS:
        cell = find(cells, "mock", ours, "paced", connections)
        sound = cell is not None and _is_sound(cell)
        found[f"c{connections}"] = added(cell, cells).ttft_p50_ms if cell and sound else None
    return found


class _Cells:
    """The cells of one part, to be compared."""

    def __init__(self, cells: Sequence[Cell], part: Part) -> None:
        self._cells = cells
        self._part = part

    def worst(
        self,
        kinds: Sequence[Kind],
        ours: str,
        peers: Sequence[str],
        read: _Read,
        pick: _Pick,
        *,
        also: Sequence[str] = (),
        loaded: bool = False,
    ) -> float | None:
        """Return the worst quotient of ours and the peer that is ahead in each cell.

        All `peers` must have been measured; those in `also` count where they were. `loaded`: at
        `_LOADED`, which must be there, and whatever size above was measured.
        """
        quotients = []
        for kind in kinds:
            mine = self._by_connections(kind, ours)
            needed = [self._by_connections(kind, peer) for peer in peers]
            extra = [self._by_connections(kind, peer) for peer in also]
            sizes = set(mine).union(*needed)
            if loaded:
                sizes = {size for size in sizes if size >= min(_LOADED)} | set(_LOADED)
            if not sizes:
                return None
            for size in sizes:
                own = _value(mine.get(size), read)
                theirs = [_value(peer.get(size), read) for peer in needed]
                theirs += [value for peer in extra if (value := _value(peer.get(size), read))]
                values = [value for value in theirs if value is not None]
                if own is None or len(values) < len(theirs):
                    return None
                quotients.append(own / max(values))
        return pick(quotients)

    def _by_connections(self, kind: Kind, system: str) -> Mapping[int, Cell]:
        return {
            cell.connections: cell
            for cell in self._cells
            if (cell.part, cell.kind, cell.system) == (self._part, kind, system)
        }


def _value(cell: Cell | None, read: _Read) -> float | None:
    return (read(cell) or None) if cell is not None and _is_sound(cell) else None


def _is_sound(cell: Cell) -> bool:
    return not cell.errors and not cell.nice


def _cpu(cell: Cell) -> float | None:
    return cell.cpu_us_per_request


def _per_s(cell: Cell) -> float | None:
    return cell.per_s
