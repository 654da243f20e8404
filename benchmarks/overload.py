"""What becomes of four times the load that the engines can take.

The claim: the fleet goes on answering as many requests as at its best, and everybody else is told
at once to come back later. To reproduce, on a machine that does nothing else:

    python benchmarks/overload.py            # two minutes
    python benchmarks/overload.py --quick    # under one

`aibrix-ray serve` with two gateways and two simulated engines, each of which runs 8 requests and
holds 16 (`max_outstanding`); 64 more may wait in each gateway (`admission.max_waiting`), which is
about a second of work. First the peak: as many closed-loop clients as the engines hold. Then
Poisson arrivals at that rate and at four times that rate, whether earlier ones are answered or not.

Goodput counts answers of 200 within the time of the load, its first second left aside; the peak is
the higher of the closed loop's and of the open loop's at 1x. Times are the client's, which shares
the machine. `--json PATH` writes the result; a full and undisturbed run is also kept in
`results/overload.json`. The exit code says whether it could be measured, not whether it held.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Run as a script, Python looks for modules in this folder; ours are found from its parent.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import machine, versions
from benchmarks.others import QUIET_CORES, Others
from benchmarks.ours import application, our_command, why_not_ours
from benchmarks.processes import NotMeasured, Service, free_port
from benchmarks.ray_env import RAY_ENV

MODEL = "sim"
_RESULT = Path(__file__).with_name("results") / "overload.json"
_FACTOR = 4.0
_REPLICAS = 2
_RUNNING = 8
_OUTSTANDING = 16
_WAITING = 64
_MAX_TOKENS = 32
_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 45.0


@dataclass(frozen=True, slots=True)
class Claim:
    """What a figure of the result should be."""

    text: str
    holds: Callable[[float], bool]


CLAIMS: Mapping[str, Claim] = {
    "goodput_over_peak": Claim("at least 0.95", lambda share: share >= 0.95),
    "refused_max_ms": Claim("under 50", lambda time_ms: time_ms < 50.0),
    "refused_without_retry_after": Claim("0", lambda count: count == 0),
    "neither_200_nor_429": Claim("0", lambda count: count == 0),
    "timeouts": Claim("0", lambda count: count == 0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the result; return the exit code."""
    parser = argparse.ArgumentParser(description="Four times the load that engines can take.")
    parser.add_argument("--quick", action="store_true", help="shorter, for a first look")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there")
    args = parser.parse_args(argv)
    # So that what was started is stopped too when this is.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    reason = why_not_ours("serve")
    if reason is not None:
        print(f"NOT MEASURED: {reason}")
        return 1
    others = Others()
    try:
        seen = measure(peak_s=4.0 if args.quick else 15.0, load_s=10.0 if args.quick else 60.0)
    except NotMeasured as error:
        print(f"NOT MEASURED: {error}")
        return 1
    result = document(seen, quick=args.quick, foreign_cores=others.cores())
    show(result)
    text = json.dumps(result, indent=1) + "\n"
    if args.json:
        args.json.write_text(text)
    if not args.quick and result["quiet"]:
        _RESULT.parent.mkdir(exist_ok=True)
        _RESULT.write_text(text)
    return 0


def measure(*, peak_s: float, load_s: float) -> dict[str, dict[str, Any]]:
    """Return what the clients saw of the three loads: `peak`, `at 1x`, `at 4x`.

    Raises:
        NotMeasured: the installation did not start, or a client failed.
    """
    # A Unix socket's path may not be long, and Ray puts some far down.
    folder = Path(tempfile.mkdtemp(prefix="gb-", dir="/tmp"))
    port = free_port()
    env = {
        **RAY_ENV,
        "RAY_TMPDIR": str(folder),
        "AIBRIX_RAY_RUNTIME_DIR": str(folder / "run"),
    }
    argv = [str(our_command()), "serve", str(_write_config(folder, port)), "--no-dashboard"]
    service = Service("ours", argv, log=folder / "log", env=env, cwd=folder)
    try:
        service.wait_ready(lambda: _check_ready(port), timeout_s=_READY_TIMEOUT_S)
        ask = partial(_run_clients, port)
        ask("--clients", _REPLICAS * _OUTSTANDING, seconds=2.0)
        peak = ask("--clients", _REPLICAS * _OUTSTANDING, seconds=peak_s)
        rate = peak["goodput_per_s"]
        once = ask("--rate", rate, seconds=peak_s)
        many = ask("--rate", _FACTOR * rate, seconds=load_s)
        return {"peak": peak, "at 1x": once, "at 4x": many}
    finally:
        service.stop(timeout_s=_STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def document(
    seen: Mapping[str, Mapping[str, Any]], *, quick: bool, foreign_cores: float
) -> dict[str, Any]:
    """Return the result as plain data, the claims' figures first."""
    many = seen["at 4x"]
    peak = max(seen["peak"]["goodput_per_s"], seen["at 1x"]["goodput_per_s"])
    answers: Mapping[str, int] = many["statuses"]
    others = sum(count for status, count in answers.items() if status not in ("200", "429"))
    now = datetime.datetime.now(datetime.UTC)
    return {
        "goodput_over_peak": many["goodput_per_s"] / peak,
        "refused_max_ms": many["refused_max_ms"],
        "refused_without_retry_after": many["refused_without_retry_after"],
        "neither_200_nor_429": others + many["broken"],
        "timeouts": many["timeouts"],
        "peak_per_s": peak,
        "targets": {name: claim.text for name, claim in CLAIMS.items()},
        "quiet": foreign_cores <= QUIET_CORES,
        "foreign_cores": foreign_cores,
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "settings": {
            "quick": quick,
            "factor": _FACTOR,
            "replicas": _REPLICAS,
            "max_num_seqs": _RUNNING,
            "max_outstanding": _OUTSTANDING,
            "max_waiting": _WAITING,
            "max_tokens": _MAX_TOKENS,
        },
        "loads": dict(seen),
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the loads and the claims, misses like the rest."""
    for name, load in result["loads"].items():
        print(
            f"{name:6} offered {load['offered_per_s']:7.1f}/s, good {load['goodput_per_s']:6.1f}/s "
            f"(p50 {load['good_p50_ms']:.0f} ms, p99 {load['good_p99_ms']:.0f} ms), "
            f"refused {load['refused']} (p99 {load['refused_p99_ms']:.1f} ms, "
            f"max {load['refused_max_ms']:.1f} ms), statuses {load['statuses']}"
        )
        if load["first_problem"]:
            print(f"       first problem: {load['first_problem']}")
    for name, claim in CLAIMS.items():
        verdict = "met" if claim.holds(result[name]) else "MISSED"
        print(f"{name:30} {result[name]:9.3f}  {claim.text:14} {verdict}")
    if not result["quiet"]:
        print(f"THE MACHINE WAS NOT QUIET: others kept {result['foreign_cores']:.2f} cores busy")


def _write_config(folder: Path, port: int) -> Path:
    engine = {"kind": "simulated", "max_num_seqs": _RUNNING}
    group = {
        "model": MODEL,
        "engine": engine,
        "replicas": {"min": _REPLICAS, "max": _REPLICAS},
        "num_cpus": 0.1,
        "max_outstanding": _OUTSTANDING,
        "drain_timeout_s": 5,
    }
    models = {MODEL: {"admission": {"max_waiting": _WAITING}}}
    gateway = application("gateway", "aibrix_ray:gateway", {"port": port, "drain_timeout_s": 5})
    gateway["deployments"] = [{"name": "gateway", "user_config": {"models": models}}]
    config = {
        "proxy_location": "Disabled",
        "applications": [gateway, application(MODEL, "aibrix_ray:replica_group", group)],
    }
    path = folder / "overload.yaml"
    path.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return path


def _check_ready(port: int) -> None:
    """Raise unless every replica is routed to."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        state = json.loads(answer.read())
    except http.client.HTTPException as error:
        raise NotMeasured(f"no proper HTTP answer: {error!r}") from error
    finally:
        connection.close()
    ready = state["ready_replicas"].get(MODEL, 0) if answer.status == 200 else 0
    if ready < _REPLICAS:
        raise NotMeasured(f"{ready} of {_REPLICAS} replicas are ready")


def _run_clients(port: int, how: str, amount: float, *, seconds: float) -> dict[str, Any]:
    """Run `open_loop.py` and return its report."""
    script = ["-m", "benchmarks.open_loop", "--port", str(port), "--model", MODEL]
    size = [how, str(amount), "--seconds", str(seconds), "--max-tokens", str(_MAX_TOKENS)]
    done = subprocess.run(
        [sys.executable, *script, *size],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 120.0,
        cwd=Path(__file__).resolve().parents[1],
    )
    if done.returncode:
        raise NotMeasured(f"the client failed: {done.stderr[-500:]}")
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


if __name__ == "__main__":
    raise SystemExit(main())
