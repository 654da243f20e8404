"""What a changed file does to clients: nothing that they could notice."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import Installation, simulated_file, wait_until
from tests.e2e.load import Load

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DEPLOY = """
import sys, time, yaml, ray
from ray import serve
from ray.serve.schema import ServeDeploySchema
ray.init(address="auto", namespace="serve", log_to_driver=False)
from ray.serve.context import _get_global_client
config = ServeDeploySchema.model_validate(yaml.safe_load(open(sys.argv[1])))
_get_global_client().deploy_apps(config, _blocking=False)
deadline = time.monotonic() + 60
while any(a.status != "RUNNING" for a in serve.status().applications.values()):
    assert time.monotonic() < deadline, serve.status()
    time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with Installation(simulated_file(replicas=2)) as running:
        yield running


def deploy(installation: Installation, text: str) -> None:
    """Deploy a changed file on the running installation, as `serve deploy` does."""
    text = text.replace("port: 8000", f"port: {installation.port}")
    path = installation.file.with_name("changed.yaml")
    path.write_text(text)
    env = {**os.environ, "RAY_ADDRESS": installation.ray_address, "RAY_AUTH_MODE": "token"}
    subprocess.run([sys.executable, "-c", DEPLOY, str(path)], check=True, timeout=120, env=env)


async def test_a_run_time_field_restarts_no_process(installation: Installation) -> None:
    before = installation.gateways(), installation.engines()
    text = simulated_file(replicas=2).replace("aliases: [other]", "aliases: [renamed]")
    async with Load(installation.url, clients=16, streaming=True) as load:
        await load.until(50)
        await asyncio.to_thread(deploy, installation, text)
        async with Load(installation.url, clients=2, model="renamed") as renamed:
            await renamed.until(20)
        await load.until(50)
    assert load.seen.lost == []
    assert load.seen.broken == []
    assert renamed.seen.lost == []
    assert (installation.gateways(), installation.engines()) == before


async def test_a_rolling_redeploy_of_gateways_fails_no_request(installation: Installation) -> None:
    before = installation.gateways(), installation.engines()
    text = simulated_file(replicas=2).replace("drain_timeout_s: 5}", "drain_timeout_s: 6}", 1)
    async with Load(installation.url, clients=16) as load:
        await load.until(50)
        await asyncio.to_thread(deploy, installation, text)
        await asyncio.to_thread(
            wait_until,
            lambda: not set(before[0]) & set(installation.gateways()),
            timeout_s=60.0,
            what="the old gateways have gone",
        )
        await load.until(100)
    assert load.seen.lost == []
    assert len(installation.gateways()) == 2
    assert installation.engines() == before[1]


def test_ray_s_own_serve_run_works_on_a_plain_cluster(tmp_path: Path) -> None:
    """`serve run FILE` from the activated environment starts a Ray of its own."""
    installation = Installation(simulated_file(per_node=1))
    installation.file.write_text(
        simulated_file(per_node=1).replace("port: 8000", f"port: {installation.port}")
    )
    with installation.run_by("serve", "run", str(installation.file)) as running:
        import httpx

        body = {"model": "sim", "prompt": "Hello", "max_tokens": 3}
        answer = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200
        running.interrupt()
        running.wait(30)
        wait_until(lambda: not running.descendants(), timeout_s=10.0, what="no process is left")
