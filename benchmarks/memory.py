"""Whether a gateway's memory stays level over a million different requests.

The claim: every index and every queue is bounded, so what a gateway holds does not grow with what
it has seen: ±5 % after a warm-up. To reproduce:

    apt-get install wrk
    python benchmarks/memory.py            # a million requests, some minutes
    python benchmarks/memory.py --quick    # 50,000

One gateway before two mock backends; wrk posts requests of which no two have a prompt or a user in
common, with keys and limits on where this version has them. RSS is read between runs of wrk of 3 s
each. The first tenth of the requests (quick: the first half) is the warm-up. `--policy` watches
another routing policy. `--json PATH` writes the result; a full run with the default policy is also
kept in `results/memory.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Run as a script, Python looks for modules in this folder; ours are found from its parent.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import machine, versions
from benchmarks.mock_systems import Gateway, Site, our_gateway
from benchmarks.mocks import PATH, READY_TIMEOUT_S, check_answers, start_mock
from benchmarks.processes import NotMeasured, Service, free_port
from benchmarks.wrk import run_script

LEVEL = 0.05
_POLICY = "least-request"
_RESULT = Path(__file__).with_name("results") / "memory.json"
_SCRIPT = Path(__file__).with_name("unique.lua")
_CONNECTIONS = 64
_RUN_S = 3.0


@dataclass(frozen=True, slots=True)
class Look:
    """The memory of the gateway after so many requests."""

    requests: int
    rss_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the result; return the exit code."""
    parser = argparse.ArgumentParser(description="A gateway's memory over many requests.")
    parser.add_argument("--quick", action="store_true", help="50,000 requests")
    parser.add_argument("--policy", default=_POLICY, help="routing policy of the gateway")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there")
    args = parser.parse_args(argv)
    # So that what was started is stopped too when this is.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    wanted, warm_up = (50_000, 25_000) if args.quick else (1_000_000, 100_000)
    system = our_gateway(policy=args.policy)
    try:
        looks = measure(system, requests=wanted, run_s=0.5 if args.quick else _RUN_S)
    except NotMeasured as error:
        print(f"NOT MEASURED: {error}")
        return 1
    result = document(looks, warm_up=warm_up)
    result["settings"] = {"quick": args.quick, "system": system.name, "policy": args.policy}
    verdict = "met" if result["rss_change"] <= LEVEL else "MISSED"
    print(f"{system.name}: {looks[-1].requests:,} requests, {looks[-1].rss_mb:.1f} MB at the end")
    print(f"rss_change {result['rss_change']:.3f}, at most {LEVEL}: {verdict}")
    text = json.dumps(result, indent=1) + "\n"
    if args.json:
        args.json.write_text(text)
    if not args.quick and args.policy == _POLICY:
        _RESULT.parent.mkdir(exist_ok=True)
        _RESULT.write_text(text)
    return 0


def measure(system: Gateway, *, requests: int, run_s: float) -> list[Look]:
    """Send at least so many requests through the gateway and return its memory on the way.

    Raises:
        NotMeasured: it cannot run here, did not start, or answered one request wrong.
    """
    if system.missing is not None:
        raise NotMeasured(system.missing)
    folder = Path(tempfile.mkdtemp(prefix="gb-", dir="/tmp"))
    mocks = [start_mock(folder, f"mock-{index}") for index in range(2)]
    try:
        site = Site(free_port(), mocks, folder)
        launch = system.launch(site)
        service = Service(
            system.name, launch.argv, log=folder / "gateway.log", env=launch.env, cwd=folder
        )
        try:
            check = partial(check_answers, site.port, key=launch.key)
            service.wait_ready(check, timeout_s=READY_TIMEOUT_S)
            return _look_on(service, site.port, launch.key, requests=requests, run_s=run_s)
        finally:
            service.stop()
    finally:
        for mock in mocks:
            mock.service.stop()
        shutil.rmtree(folder, ignore_errors=True)


def document(looks: Sequence[Look], *, warm_up: int) -> dict[str, Any]:
    """Return the result as plain data: the largest deviation from the first look after warm-up."""
    settled = [look for look in looks if look.requests >= warm_up]
    base = settled[0]
    now = datetime.datetime.now(datetime.UTC)
    return {
        "rss_change": max(abs(look.rss_mb / base.rss_mb - 1.0) for look in settled),
        "requests": looks[-1].requests,
        "target": f"at most {LEVEL}",
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "looks": [{"requests": look.requests, "rss_mb": look.rss_mb} for look in looks],
    }


def _look_on(service: Service, port: int, key: str, *, requests: int, run_s: float) -> list[Look]:
    url = f"http://127.0.0.1:{port}{PATH}"
    looks: list[Look] = []
    sent = 0
    while sent < requests:
        run = str(len(looks))
        seen = run_script(_SCRIPT, url, [key, run], connections=_CONNECTIONS, seconds=run_s)
        if seen.errors or not seen.requests:
            raise NotMeasured(f"{seen.errors} errors after {sent} requests")
        sent += seen.requests
        looks.append(Look(sent, service.usage().rss_bytes / 1e6))
    return looks


if __name__ == "__main__":
    raise SystemExit(main())
