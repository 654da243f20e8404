"""Runs `stream_client.py` as a process of its own and makes a cell of what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, Kind, Part
from benchmarks.machine import load_average
from benchmarks.others import Others
from benchmarks.processes import NotMeasured, Service

WARM_UP_S = 1.0
_SCRIPT = Path(__file__).with_name("stream_client.py")


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """How many clients ask which model for how long; another seed means other prompts."""

    model: str
    connections: int
    seconds: float
    seed: int = 0
    #: False for servers that count no tokens.
    usage: bool = True
    #: API key; "": none is sent.
    key: str = ""


def run_stream_client(port: int, load: StreamLoad) -> dict[str, Any]:
    """Return what the client reports after a warm-up and the seconds of `load`."""
    command = [sys.executable, str(_SCRIPT), "--port", str(port), "--model", load.model]
    command += ["--connections", str(load.connections), "--seconds", str(load.seconds)]
    command += ["--warm-up", str(WARM_UP_S), "--seed", str(load.seed)]
    command += ["--key", load.key] if load.key else []
    command += [] if load.usage else ["--no-usage"]
    limit_s = load.seconds + 120
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    if done.returncode:
        raise NotMeasured(f"the client failed: {done.stderr[-500:]}")
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def stream_cell(
    part: Part, system: str, kind: Kind, port: int, service: Service | None, load: StreamLoad
) -> Cell:
    """Measure one cell; raises NotMeasured where no stream at all came whole."""
    load_before = load_average()
    others = Others()
    before = service.usage() if service else None
    seen = run_stream_client(port, load)
    after = service.usage() if service else None
    if not seen["streams"]:
        raise NotMeasured(f"{system} completed no stream: {seen['first_error']}")
    cpu_s = after.cpu_since(before) if before and after else None
    return Cell(
        part=part,
        system=system,
        kind=kind,
        connections=load.connections,
        per_s=seen["streams_per_s"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        requests=seen["streams"],
        errors=seen["errors"],
        first_error=seen["first_error"],
        load_before=load_before,
        foreign_cores=others.cores(),
        # The warm-up's streams count here, as its CPU does.
        cpu_us_per_request=None if cpu_s is None else cpu_s / seen["all_streams"] * 1e6,
        rss_mb=None if after is None else after.rss_bytes / 1e6,
        nice=after.nice if after else 0,
        ttft_p50_ms=seen["ttft_p50_ms"],
        ttft_p99_ms=seen["ttft_p99_ms"],
        arrivals_per_stream=seen["arrivals_per_stream"],
    )
