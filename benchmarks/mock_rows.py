"""Rows over the mocks: one mock direct, ours, ours over TCP, and vllm-router. Starts no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.cells import DIRECT, OURS, OURS_TCP, VLLM_ROUTER, Cell, Kind, Measured, Say
from benchmarks.install_peers import vllm_router
from benchmarks.machine import load_average
from benchmarks.mocks import (
    MODEL,
    PATH,
    READY_TIMEOUT_S,
    Backend,
    check_answers,
    request_body,
    start_mock,
)
from benchmarks.others import Others
from benchmarks.ours import our_command, why_not_ours
from benchmarks.processes import NotMeasured, Service, free_port
from benchmarks.stream_load import StreamLoad, stream_cell
from benchmarks.wrk import run_wrk

WARM_UP_S = 1.0
PACE_MS = 10.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """How to start one of the systems that stand before the mocks."""

    name: str
    command: Callable[[int, Sequence[Backend]], list[str]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured of each system."""

    connections: Sequence[int]
    seconds: float
    rounds: int
    #: Whether streams at an engine's pace are measured too.
    paced: bool


def measure(sizes: Sizes, *, scratch: Path, say: Say) -> Measured:
    """Measure every system at every size, one system after the other, round after round."""
    measured = Measured()
    gateways = _gateways(measured.left_out)
    fast = [start_mock(scratch, f"mock-{index}") for index in range(2)]
    slow = [start_mock(scratch, f"paced-{index}", delay_ms=PACE_MS) for index in range(2)]
    try:
        for index in range(sizes.rounds):
            say(f"mock backends, round {index + 1} of {sizes.rounds}")
            _round(measured, gateways, fast, _Load(("unary", "stream"), sizes, say), scratch)
            if sizes.paced:
                _round(measured, gateways, slow, _Load(("paced",), sizes, say), scratch)
    finally:
        for backend in (*fast, *slow):
            backend.service.stop()
    return measured


def _round(
    measured: Measured,
    gateways: Sequence[Gateway],
    backends: Sequence[Backend],
    load: _Load,
    scratch: Path,
) -> None:
    measured.attempt(DIRECT, partial(load.cells, DIRECT, backends[0].port, None))
    for gateway in gateways:
        measured.attempt(gateway.name, partial(_through, gateway, backends, load, scratch))


def _gateways(left_out: dict[str, str]) -> list[Gateway]:
    gateways = []
    reason, router = why_not_ours("gateway"), vllm_router()
    if reason is not None:
        left_out[OURS] = left_out[OURS_TCP] = reason
    else:
        gateways.append(Gateway(OURS, _ours(lambda mock: f"uds:{mock.uds}")))
        gateways.append(Gateway(OURS_TCP, _ours(lambda mock: f"http://127.0.0.1:{mock.port}")))
    if router is None:
        left_out[VLLM_ROUTER] = "not installed: python benchmarks/install_peers.py"
    else:
        gateways.append(Gateway(VLLM_ROUTER, _router(router)))
    return gateways


def _ours(address: Callable[[Backend], str]) -> Callable[[int, Sequence[Backend]], list[str]]:
    def build(port: int, backends: Sequence[Backend]) -> list[str]:
        options = [f"--backend={MODEL}={address(backend)}" for backend in backends]
        return [str(our_command()), "gateway", "--port", str(port), *options]

    return build


def _router(command: Path) -> Callable[[int, Sequence[Backend]], list[str]]:
    def build(port: int, backends: Sequence[Backend]) -> list[str]:
        loopback = "127.0.0.1"
        workers = [f"http://{loopback}:{backend.port}" for backend in backends]
        listen = ["--host", loopback, "--port", str(port)]
        metrics = ["--prometheus-host", loopback, "--prometheus-port", str(free_port())]
        policy = ["--policy", "round_robin", "--disable-retries", "--log-level", "warning"]
        return [str(command), *listen, "--worker-urls", *workers, *policy, *metrics]

    return build


def _through(
    gateway: Gateway, backends: Sequence[Backend], load: _Load, scratch: Path
) -> list[Cell]:
    """Start the gateway before the backends, measure it, and stop it."""
    port = free_port()
    log = scratch / f"{gateway.name.replace(' ', '-')}.log"
    service = Service(gateway.name, gateway.command(port, backends), log=log, cwd=scratch)
    try:
        service.wait_ready(lambda: check_answers(port), timeout_s=READY_TIMEOUT_S)
        return load.cells(gateway.name, port, service)
    finally:
        service.stop()


@dataclass(frozen=True, slots=True)
class _Load:
    """The kinds and sizes of load that one system is put under."""

    kinds: Sequence[Kind]
    sizes: Sizes
    say: Say

    def cells(self, system: str, port: int, service: Service | None) -> list[Cell]:
        plain_bytes, stream_bytes = check_answers(port)
        found = []
        for kind in self.kinds:
            for connections in self.sizes.connections:
                if kind == "paced":
                    cell = self._paced(system, port, service, connections)
                else:
                    shortest = plain_bytes if kind == "unary" else stream_bytes
                    cell = self._by_wrk(system, port, service, kind, connections)
                    cell = _refuse_short_answers(cell, shortest)
                self.say(f"  {system}, {kind}, {connections}: {cell.per_s:,.0f}/s")
                found.append(cell)
        return found

    def _by_wrk(
        self, system: str, port: int, service: Service | None, kind: Kind, connections: int
    ) -> Cell:
        url, body = f"http://127.0.0.1:{port}{PATH}", request_body(stream=kind == "stream")
        load_before = load_average()
        run_wrk(url, body, connections=connections, seconds=WARM_UP_S)
        others = Others()
        before = service.usage() if service else None
        seen = run_wrk(url, body, connections=connections, seconds=self.sizes.seconds)
        after = service.usage() if service else None
        if not seen.requests:
            raise NotMeasured(f"{system} completed no {kind} request at {connections} connections")
        cpu_s = after.cpu_since(before) if before and after else None
        return Cell(
            part="mock",
            system=system,
            kind=kind,
            connections=connections,
            per_s=seen.per_s,
            p50_ms=seen.p50_ms,
            p99_ms=seen.p99_ms,
            requests=seen.requests,
            bytes_per_request=seen.bytes_per_request,
            errors=seen.errors,
            load_before=load_before,
            foreign_cores=others.cores(),
            cpu_us_per_request=None if cpu_s is None else cpu_s / seen.requests * 1e6,
            rss_mb=None if after is None else after.rss_bytes / 1e6,
            nice=after.nice if after else 0,
        )

    def _paced(self, system: str, port: int, service: Service | None, connections: int) -> Cell:
        """Measure streams at a token every `PACE_MS`; wrk cannot see a first token."""
        load = StreamLoad(MODEL, connections, max(self.sizes.seconds, 3.0), usage=False)
        return stream_cell("mock", system, "paced", port, service, load)


def _refuse_short_answers(cell: Cell, shortest_bytes: int) -> Cell:
    """Call a cell failed whose answers were not even as long as the body they should hold."""
    if cell.bytes_per_request is not None and cell.bytes_per_request < shortest_bytes:
        error = f"answers of {cell.bytes_per_request:.0f} bytes for {shortest_bytes}"
        return replace(cell, errors=cell.requests, first_error=error)
    return cell
