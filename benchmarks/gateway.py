"""What a request costs in our gateway, beside its peers, in one run.

The claims: with keys and limits off our gateway is no slower than the Rust vllm-router and costs no
more; with both on it costs half of that router's cache-aware policy; a real vLLM behind us is as
fast as `vllm serve` alone. To reproduce, on a machine that does nothing else:

    apt-get install wrk
    python benchmarks/install_peers.py          # the peers, outside of our venv
    python benchmarks/gateway.py                # everything, three quarters of an hour on two cores
    python benchmarks/gateway.py --only mock    # the mock backends, 25 minutes
    python benchmarks/gateway.py --quick        # the contested rows over the mocks, a minute

**Part 1, mock backends.** Two instances of `mock_backend.py`, and before them, one after the other,
the systems of `mock_systems.py`; "direct" is one mock alone, so a gateway may complete more streams
than it. `wrk -t1` over keep-alive connections, 1 s of warm-up a cell. A stream is 32 events; it
counts when its last chunk has come. CPU is user + system of all processes of the system, as the
scheduler counts it, over the completed requests. Every client sends an API key; one row reads it.

Those streams come as fast as they can, so several events are often waiting when a gateway looks,
and the mocks limit their rate: they are compared by CPU. An engine sends a token every few
milliseconds, which leaves less to gather: "paced" streams come at 10 ms a token, by
`stream_client.py`, with the time to the first token.

Ours is one process with one thread that works; it reaches its engines over Unix sockets where they
share a node, which is how it runs in production. The Rust routers and HAProxy have a thread a core
and can only use TCP, so "ours over TCP" is measured too, and its ratios stand beside the others, in
the table and under `over_tcp`. The systems that decide no narrow claim are measured in the first
round only, the slow ones for longer.

**Part 2, a real vLLM on the CPU.** `vllm serve` alone, ours, ray.serve.llm with its defaults and at
its best (HAProxy, direct streaming, its batching of 50 ms off). One replica, streams of 32 tokens,
distinct prompts, closed loop; interleaved by rounds, medians. `vllm serve` writes no access log
here, which is to its advantage.

Every process runs at nice 0 (Ray's workers too, by RAY_worker_niceness=0) and on loopback. A ratio
is the worst over the cells it is drawn from; it is null where one was left out, had errors or ran
at another nice value.
The exit code says whether every row could be measured, not who won. `--json PATH` writes the
result; a run of everything, or of one part, at the sizes above and undisturbed is also kept in
`results/gateway.json`, where a part that was not measured now stays as it was, with its date.
The column "others" says how many cores foreign processes kept busy during a cell.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

# Run as a script, Python looks for modules in this folder; ours are found from its parent.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import engine_rows, mock_rows
from benchmarks.cells import OURS, RAY_SERVE_LLM, RAY_SERVE_LLM_BEST, VLLM_SERVE, Measured, Part
from benchmarks.install_peers import install_peers
from benchmarks.kept import read_part
from benchmarks.processes import NotMeasured
from benchmarks.report import document, is_quiet, show
from benchmarks.wrk import require_wrk

_RESULT = Path(__file__).with_name("results") / "gateway.json"
_ENGINE_SYSTEMS = (VLLM_SERVE, OURS, RAY_SERVE_LLM, RAY_SERVE_LLM_BEST)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the result; return the exit code."""
    args = _parse(argv)
    # So that what was started is stopped too when this is.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if args.install_peers:
        install_peers()
    if os.getpriority(os.PRIO_PROCESS, 0) > 0:
        _say("warning: this runs at a nice value above 0, and so does all that it starts")
    started_s = time.monotonic()
    measured, settings = _measure(args)
    settings["took_s"] = round(time.monotonic() - started_s)
    result = json.dumps(document(measured, settings), indent=1) + "\n"
    show(measured)
    if args.json:
        args.json.write_text(result)
    if _is_full(args) and _is_worth_keeping(measured):
        _keep(measured, settings)
    return 1 if measured.failed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a request costs in our gateway.")
    parser.add_argument(
        "--quick", action="store_true", help="the contested rows over the mocks, one short round"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there")
    parser.add_argument("--only", choices=["mock", "engine"], help="one of the two parts")
    parser.add_argument("--rounds", type=int, help="rounds of each part (3; quick: 1)")
    parser.add_argument(
        "--seconds", type=float, help="measured a cell (mock 3, quick 1.5; engine 10)"
    )
    parser.add_argument(
        "--connections",
        type=int,
        nargs="+",
        help="sizes of both parts (1 16 64 256; engine 1 8 16)",
    )
    parser.add_argument(
        "--install-peers", action="store_true", help="install what is missing first"
    )
    args = parser.parse_args(argv)
    if args.quick and args.only == "engine":
        parser.error("--quick starts no real engine")
    return args


def _is_full(args: argparse.Namespace) -> bool:
    """Whether the run measures its parts at the documented sizes."""
    changes = (args.quick, args.rounds, args.seconds, args.connections)
    return not any(changes)


def _is_worth_keeping(measured: Measured) -> bool:
    """Whether nothing is missing and nobody disturbed; wins and losses are kept alike."""
    return not (measured.left_out or measured.failed) and is_quiet(measured.cells)


def _keep(measured: Measured, settings: dict[str, object]) -> None:
    """Write the result where it stays; of a part that was not measured now, the earlier one."""
    parts: tuple[Part, ...] = ("mock", "engine")
    absent = [part for part in parts if part not in {cell.part for cell in measured.cells}]
    kept = {part: found for part in absent if (found := read_part(_RESULT, part))}
    for part, found in kept.items():
        _say(f"the part {part} is kept as it was measured on {found.date}")
    _RESULT.parent.mkdir(exist_ok=True)
    _RESULT.write_text(json.dumps(document(measured, settings, kept), indent=1) + "\n")


def _measure(args: argparse.Namespace) -> tuple[Measured, dict[str, object]]:
    """Return what both parts saw, one cell for all rounds, and the settings they ran with."""
    whole = Measured()
    settings: dict[str, object] = {"quick": args.quick}
    with tempfile.TemporaryDirectory(prefix="gateway-benchmark-", dir="/tmp") as folder:
        scratch = Path(folder)
        if args.only != "engine":
            whole.take(_measure_mock(args, scratch, settings))
        if args.quick:
            whole.left_out |= {
                f"{name}, real engine": "--quick starts no real engine" for name in _ENGINE_SYSTEMS
            }
        elif args.only != "mock":
            whole.take(_measure_engines(args, scratch, settings))
    return whole, settings


def _measure_mock(args: argparse.Namespace, scratch: Path, settings: dict[str, object]) -> Measured:
    connections = args.connections or ([16, 64] if args.quick else [1, 16, 64, 256])
    sizes = mock_rows.Sizes(
        connections=connections,
        paced_connections=connections[:1] if args.quick else connections,
        seconds=args.seconds or (1.0 if args.quick else 3.0),
        paced_seconds=args.seconds or (2.0 if args.quick else 3.0),
        warm_up_s=0.3 if args.quick else 1.0,
        rounds=args.rounds or (1 if args.quick else 3),
        everybody=not args.quick,
    )
    settings["mock"] = {**asdict(sizes), "pace_ms": mock_rows.PACE_MS}
    try:
        require_wrk()
    except NotMeasured as error:
        return Measured(failed={"mock backends": str(error)})
    return mock_rows.measure(sizes, scratch=scratch, say=_say)


def _measure_engines(
    args: argparse.Namespace, scratch: Path, settings: dict[str, object]
) -> Measured:
    connections = args.connections or [1, 8, 16]
    seconds = args.seconds or 10.0
    rounds = args.rounds or 3
    settings["engine"] = {
        "connections": connections,
        "seconds": seconds,
        "rounds": rounds,
        "client_on_the_mock": engine_rows.client_overhead(
            connections=max(connections), seconds=2.0, scratch=scratch
        ),
    }
    return engine_rows.measure(
        connections=connections, seconds=seconds, rounds=rounds, scratch=scratch, say=_say
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
