"""An installation as its user starts it: `aibrix-ray serve FILE` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

READY_S = 180.0


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], *, timeout_s: float, what: str) -> None:
    """Poll until the condition holds; fail with `what` after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def simulated_file(*, replicas: int = 1, per_node: int = 2, extra: str = "") -> str:
    """Return the YAML of one gateway application and one simulated group."""
    return f"""
proxy_location: Disabled
applications:
- name: gateway
  import_path: aibrix_ray:gateway
  route_prefix: null
  args: {{port: 8000, per_node: {per_node}, drain_timeout_s: 5}}
  deployments:
  - name: gateway
    user_config:
      models: {{sim: {{aliases: [other], wait_for_replica_s: 30}}}}
- name: sim
  import_path: aibrix_ray:replica_group
  route_prefix: null
  args:
    model: sim
    engine: {{kind: simulated, max_num_seqs: 128, kv_blocks: 65536}}
    replicas: {{min: {replicas}, max: {replicas}}}
    num_cpus: 0.1
    drain_timeout_s: 5
{extra}"""


def metric(url: str, prefix: str) -> int:
    """Sum a series over the gateways, which share the port: scrape until each has answered."""
    seen: dict[str, int] = {}
    no_reuse = httpx.Limits(max_keepalive_connections=0)
    # To read certificates that nobody needs takes longer than some answers last.
    with httpx.Client(limits=no_reuse, timeout=5.0, verify=False) as client:
        for _ in range(12):
            answer = client.get(f"{url}/metrics?scope=process")
            seen[answer.headers["gateway"]] = sum(
                int(float(line.rsplit(" ", 1)[1]))
                for line in answer.text.splitlines()
                if line.startswith(prefix)
            )
    return sum(seen.values())


class Installation:
    """A running `aibrix-ray serve`; use as a context manager."""

    wants_replicas = True

    def __init__(self, text: str, *, env: dict[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="aibrix-e2e-"))
        self.file = self._folder / "config.yaml"
        self.file.write_text(text)
        self.port = free_port()
        self.runtime_dir = self._folder / "run"
        self.log = self._folder / "log"
        self._started: set[tuple[int, int]] = set()
        self.run_by("aibrix-ray", "serve", str(self.file), "--no-dashboard")
        self._env = {
            **os.environ,
            "AIBRIX_RAY_RUNTIME_DIR": str(self.runtime_dir),
            "AIBRIX_RAY__GATEWAY__PORT": str(self.port),
            **(env or {}),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run_by(self, command: str, *args: str) -> Installation:
        """Start by another command of the environment than `aibrix-ray serve`."""
        self._command = [str(Path(sys.executable).with_name(command)), *args]
        return self

    def unset(self, variable: str) -> None:
        """Start without a variable of the environment."""
        self._env.pop(variable, None)

    def __enter__(self) -> Installation:
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._ready, timeout_s=READY_S, what=f"ready; see {self.log}")
        except BaseException:
            print(self.log.read_text()[-4000:])
            self.__exit__()
            raise
        # Ray's agents hide their environment behind their titles and lose their parent with it.
        self._started = {(pid, _started(pid)) for pid in self.descendants()}
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30.0)
        left = {pid for pid, started in self._started if _started(pid) == started and alive(pid)}
        for pid in left | set(self.descendants()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """The driver."""
        return self._process.pid

    @property
    def ray_address(self) -> str:
        """The cluster that `aibrix-ray serve` has started; it prints the address."""
        wait_until(
            lambda: "RAY_ADDRESS=" in self.log.read_text(), timeout_s=30.0, what="the address"
        )
        address: str = re.findall(r"RAY_ADDRESS=(\S+)", self.log.read_text())[0]
        return address

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float) -> int:
        """Wait for the driver's end."""
        return self._process.wait(timeout_s)

    def descendants(self) -> list[int]:
        """Every process that this installation started, directly or not, and that lives."""
        found = {pid for pid in _pids() if _belongs(pid, str(self.runtime_dir))}
        # A process that sets its title may write over its environment: its parent tells.
        return sorted(found | _below(found))

    def pids(self, part: str) -> list[int]:
        """The processes whose title contains `part`, oldest first."""
        found = [pid for pid in self.descendants() if part in title(pid)]
        return sorted(found, key=_started)

    def engine_processes(self, group: str) -> list[int]:
        """The replicas of a group and every process that they have started."""
        replicas = self.engines(group)
        return [*replicas, *_below(set(replicas))]

    def gateways(self) -> list[int]:
        return self.pids("ServeReplica:gateway:gateway")

    def engines(self, group: str = "sim") -> list[int]:
        return self.pids(f"ServeReplica:{group}:engine")

    def controller(self) -> int:
        (pid,) = self.pids("ServeController")
        return pid

    def _ready(self) -> bool:
        assert self._process.poll() is None, "the driver has ended"
        with contextlib.suppress(httpx.HTTPError):
            state = httpx.get(f"{self.url}/readyz")
            if state.status_code != 200:  # also Serve's proxy, before the application is there
                return False
            return all(state.json()["ready_replicas"].values()) or not self.wants_replicas
        return False


def alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def _pids() -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if alive(pid):
            yield pid


def _belongs(pid: int, marker: str) -> bool:
    # Every process of the installation inherits the runtime directory's variable.
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"AIBRIX_RAY_RUNTIME_DIR={marker}".encode() in environ


def shared_memory(pid: int) -> set[str]:
    """Return the names under /dev/shm that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/((?:psm_|sem\.mp-)\S+)", maps))


def _below(roots: set[int]) -> set[int]:
    parents = {pid: _parent(pid) for pid in _pids()}
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in roots | found} - found:
        found |= more
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def title(pid: int) -> str:
    """Return a process's command line; "" if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0
