"""A service is watched and stopped with all its children, and nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.processes import NotMeasured, Service, Usage

_PARENT_AND_CHILD = """
import subprocess, sys, pathlib, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def read_pid(path: Path) -> int:
    return int(path.read_text())  # ValueError while it is being written


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_stopping_ends_children_too_even_those_with_a_session_of_their_own(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = [sys.executable, "-c", _PARENT_AND_CHILD, str(pid_file)]
    service = Service("parent", command, log=tmp_path / "log")
    service.wait_ready(lambda: read_pid(pid_file), timeout_s=30)
    child = read_pid(pid_file)

    assert child in service.usage().cpu_s
    service.stop(timeout_s=0.5)

    assert not is_running(child)
    assert service.usage().cpu_s == {}


def test_a_service_that_ends_before_it_is_ready_says_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such backend')"]
    service = Service("gateway", command, log=tmp_path / "log")

    def never() -> None:
        raise ConnectionRefusedError

    with pytest.raises(NotMeasured, match="gateway ended: no such backend"):
        service.wait_ready(never, timeout_s=30)
    service.stop()


def test_cpu_is_counted_from_the_earlier_look_per_process() -> None:
    before = Usage(cpu_s={1: 5.0, 2: 1.0}, rss_bytes=0, nice=0)
    after = Usage(cpu_s={1: 7.0, 3: 0.5}, rss_bytes=0, nice=0)

    assert after.cpu_since(before) == 2.5


def test_our_own_process_is_no_member_of_a_service(tmp_path: Path) -> None:
    service = Service("sleeper", ["sleep", "600"], log=tmp_path / "log")

    assert os.getpid() not in service.usage().cpu_s
    service.stop()


def test_cpu_is_counted_finer_than_in_clock_ticks(tmp_path: Path) -> None:
    service = Service("sleeper", ["sleep", "600"], log=tmp_path / "log")

    (cpu_s,) = service.usage().cpu_s.values()

    assert cpu_s > 0.0
    service.stop()


def test_an_idle_service_is_not_waited_for(tmp_path: Path) -> None:
    service = Service("sleeper", ["sleep", "600"], log=tmp_path / "log")

    service.await_idle(timeout_s=60.0)

    assert service.usage().cpu_s
    service.stop()
