"""Load by wrk on one thread, and what it saw. A stream is one request, done at its last chunk."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import NotMeasured

_SCRIPT = Path(__file__).with_name("wrk.lua")
_MARK = "OUTCOME "


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of wrk."""

    seconds: float
    requests: int
    bytes_per_request: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def per_s(self) -> float:
        """Whole answers a second."""
        return self.requests / self.seconds


def require_wrk() -> str:
    """Return the path of wrk, or say how to get it."""
    path = shutil.which("wrk")
    if path is None:
        raise NotMeasured("wrk is not installed: apt-get install wrk")
    return path


def run_wrk(url: str, body: str, *, key: str, connections: int, seconds: float) -> Outcome:
    """Post `body` to `url` over keep-alive connections for `seconds`, then count."""
    return run_script(_SCRIPT, url, [body, key], connections=connections, seconds=seconds)


def run_script(
    script: Path, url: str, args: Sequence[str], *, connections: int, seconds: float
) -> Outcome:
    """Run wrk for `seconds` with a script that prints its outcome as `wrk.lua` does."""
    command = [require_wrk(), "-t1", f"-c{connections}", f"-d{int(seconds) + 30}s"]
    # Longer than any run: who answers late is slow, which is no error.
    command += ["--timeout", "60s", "-s", str(script), url, "--", *args]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        # wrk's own -d takes whole seconds only; on SIGINT it stops and reports just the same.
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    return parse_outcome(output)


def parse_outcome(output: str) -> Outcome:
    """Read the line that the Lua script prints at the end."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            seen = json.loads(line.removeprefix(_MARK))
            break
    else:
        raise NotMeasured(f"wrk reported nothing: {output.strip()[-500:]}")
    failures = ("connect", "read", "write", "status", "timeout")
    requests = int(seen["requests"])
    return Outcome(
        seconds=seen["duration_us"] / 1e6,
        requests=requests,
        bytes_per_request=seen["bytes"] / max(1, requests),
        p50_ms=seen["p50_us"] / 1e3,
        p99_ms=seen["p99_us"] / 1e3,
        errors=sum(int(seen[failure]) for failure in failures),
    )
