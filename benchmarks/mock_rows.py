"""Rows over the mocks: one mock direct, then every system before two. Starts no engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.cells import DIRECT, Cell, Kind, Measured, Say
from benchmarks.machine import load_average
from benchmarks.mock_systems import Gateway, Launch, Site, gateways
from benchmarks.mocks import (
    ANY_KEY,
    MODEL,
    PATH,
    READY_TIMEOUT_S,
    Backend,
    check_answers,
    request_body,
    start_mock,
)
from benchmarks.others import Others
from benchmarks.processes import NotMeasured, Service, free_port
from benchmarks.stream_load import StreamLoad, stream_cell
from benchmarks.wrk import run_wrk

PACE_MS = 10.0
_IDLE_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured of each system."""

    connections: Sequence[int]
    #: At which of them streams at an engine's pace are measured too.
    paced_connections: Sequence[int]
    seconds: float
    #: Of a paced stream, which takes a third of a second by itself.
    paced_seconds: float
    warm_up_s: float
    rounds: int
    #: Whether the systems that decide no narrow claim are measured too, in the first round.
    everybody: bool


def measure(sizes: Sizes, *, scratch: Path, say: Say) -> Measured:
    """Measure every system at every size, one system after the other, round after round."""
    measured = Measured()
    present = _present(sizes, measured.left_out)
    fast = [start_mock(scratch, f"mock-{index}") for index in range(2)]
    slow = [start_mock(scratch, f"paced-{index}", delay_ms=PACE_MS) for index in range(2)]
    try:
        for index in range(sizes.rounds):
            say(f"mock backends, round {index + 1} of {sizes.rounds}")
            systems = [system for system in present if system.contested or index == 0]
            plain: list[Kind] = ["unary", "stream"]
            _round(systems, fast, _Load(plain, sizes, measured, say), scratch)
            if sizes.paced_connections:
                _round(systems, slow, _Load(["paced"], sizes, measured, say), scratch)
    finally:
        for backend in (*fast, *slow):
            backend.service.stop()
    return measured


def _present(sizes: Sizes, left_out: dict[str, str]) -> list[Gateway]:
    present = []
    for system in gateways():
        if system.missing is not None:
            left_out[system.name] = system.missing
        elif not (system.contested or sizes.everybody):
            left_out[system.name] = "--quick measures the contested systems only"
        else:
            present.append(system)
    return present


def _round(
    systems: Sequence[Gateway], backends: Sequence[Backend], load: _Load, scratch: Path
) -> None:
    direct = partial(load.cells, DIRECT, backends[0].port, None)
    load.measured.attempt(DIRECT, direct)
    for system in systems:
        load.measured.attempt(system.name, partial(_through, system, backends, load, scratch))


def _through(
    system: Gateway, backends: Sequence[Backend], load: _Load, scratch: Path
) -> list[Cell]:
    """Start the system before the backends, measure it, and stop it."""
    # Its own, and short: Ray puts Unix sockets far below, whose paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="gb-", dir="/tmp"))
    site = Site(free_port(), backends, folder)
    log = scratch / f"{system.name.replace(' ', '-').replace(',', '')}.log"
    try:
        launch = system.launch(site)
        service = Service(system.name, launch.argv, log=log, env=launch.env, cwd=folder)
        try:
            check = partial(check_answers, site.port, key=launch.key)
            service.wait_ready(check, timeout_s=READY_TIMEOUT_S)
            return load.cells(system.name, site.port, service, launch, patience=system.patience)
        finally:
            service.stop(timeout_s=system.stop_timeout_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Target:
    """What is under load."""

    system: str
    port: int
    service: Service | None
    key: str
    patience: int


@dataclass(frozen=True, slots=True)
class _Load:
    """The kinds and sizes of load that one system is put under, and where failures go."""

    kinds: Sequence[Kind]
    sizes: Sizes
    measured: Measured
    say: Say

    def cells(
        self,
        system: str,
        port: int,
        service: Service | None,
        launch: Launch | None = None,
        *,
        patience: int = 1,
    ) -> list[Cell]:
        """Return the cells that could be measured; what could not is told in `measured.failed`."""
        key = launch.key if launch else ANY_KEY
        target = _Target(system, port, service, key, patience)
        shortest = check_answers(port, key=key)
        found = []
        for kind in self.kinds:
            paced = kind == "paced"
            for connections in self.sizes.paced_connections if paced else self.sizes.connections:
                if service is not None and patience > 1:
                    service.await_idle(timeout_s=_IDLE_TIMEOUT_S)
                try:
                    cell = self._cell(target, kind, connections, shortest)
                except NotMeasured as error:
                    load = f"{system}, mock, {kind}, {connections} connections"
                    self.measured.failed[load] = str(error)
                    continue
                self.say(f"  {system}, {kind}, {connections}: {cell.per_s:,.0f}/s")
                found.append(cell)
        return found

    def _cell(
        self, target: _Target, kind: Kind, connections: int, shortest: tuple[int, int]
    ) -> Cell:
        if kind == "paced":
            return self._paced(target, connections)
        cell = self._by_wrk(target, kind, connections)
        return _refuse_short_answers(cell, shortest[kind == "stream"])

    def _by_wrk(self, target: _Target, kind: Kind, connections: int) -> Cell:
        service = target.service
        url, body = f"http://127.0.0.1:{target.port}{PATH}", request_body(stream=kind == "stream")
        wrk = partial(run_wrk, url, body, key=target.key, connections=connections)
        load_before = load_average()
        wrk(seconds=self.sizes.warm_up_s)
        others = Others()
        before = service.usage() if service else None
        seconds = self.sizes.seconds * target.patience
        seen = wrk(seconds=seconds)
        after = service.usage() if service else None
        if not seen.requests:
            raise NotMeasured(f"no {kind} request was completed in {seconds:g} s")
        cpu_s = after.cpu_since(before) if before and after else None
        return Cell(
            part="mock",
            system=target.system,
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

    def _paced(self, target: _Target, connections: int) -> Cell:
        """Measure streams at a token every `PACE_MS`; wrk cannot see a first token."""
        seconds = self.sizes.paced_seconds * target.patience
        load = StreamLoad(MODEL, connections, seconds, usage=False, key=target.key)
        return stream_cell("mock", target.system, "paced", target.port, target.service, load)


def _refuse_short_answers(cell: Cell, shortest_bytes: int) -> Cell:
    """Call a cell failed whose answers were not even as long as the body they should hold."""
    if cell.bytes_per_request is not None and cell.bytes_per_request < shortest_bytes:
        error = f"answers of {cell.bytes_per_request:.0f} bytes for {shortest_bytes}"
        return replace(cell, errors=cell.requests, first_error=error)
    return cell
