"""Whatever kills an installation's supervisors, no engine outlives them.

Ray's own clean-up of process groups is off: what is tested is engines/guard.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.installation import Installation, alive, shared_memory, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow]

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart.yaml"

VICTIMS: dict[str, Callable[[Installation], int]] = {
    "raylet": lambda installation: installation.pids("raylet/raylet")[0],
    "driver": lambda installation: installation.pid,
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_no_engine_outlives_its(victim: str) -> None:
    env = {"RAY_process_group_cleanup_enabled": "0"}
    with Installation(QUICKSTART.read_text(), env=env) as installation:
        engine = installation.engine_processes("tiny")
        gateways = installation.gateways()
        assert len(engine) >= 2
        names = {name for pid in engine for name in shared_memory(pid)}
        os.kill(VICTIMS[victim](installation), signal.SIGKILL)
        wait_until(
            lambda: not any(map(alive, [*engine, *gateways])),
            timeout_s=30.0,
            what="engines and gateways have gone",
        )
        assert not names & set(os.listdir("/dev/shm"))
        assert not list(installation.runtime_dir.glob("*.sock"))
