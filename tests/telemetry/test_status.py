from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from aibrix_ray.cli import status
from aibrix_ray.telemetry import wire
from tests.telemetry.figures import make_fleet, make_group
from tests.telemetry.test_overview import make_store, overview_of


def make_app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    status.register(app)
    return app


def shown(what: Any) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(what)
    return console.export_text()


def test_the_table_shows_every_level() -> None:
    store = make_store(make_fleet(2, 1), make_fleet(2, 2))
    store.register_group(make_group("llama-a10", model="meta-llama/Llama-3.1-8B"), 0.0)
    store.register_group(make_group("idle", model="other", min_replicas=0), 0.0)
    lines = shown(status.render(overview_of(store, 1.0))).splitlines()
    text = [" ".join(line.split()) for line in lines]
    assert text[1:] == [
        "meta-llama/Llama-3.1-8B 1 1",
        "llama-a10 vllm 2 (1-1) 1 1 37 % 2 2 -",
        "llama-a10#replica#00000000 ready 0 0 37 % 1 1 - 1.0 s 0.0 s",
        "llama-a10#replica#00000001 ready 1 1 37 % 1 1 - 1.0 s 0.0 s",
        "other 0 0",
        "idle vllm 0 (0-1) 0 0 - - - -",
        "2 models, 2 replicas ready",
    ]


def test_without_models_it_says_so() -> None:
    assert "no replica group has been deployed" in shown(status.render(()))


def test_a_cluster_that_does_not_answer_is_named_with_the_way_out() -> None:
    result = CliRunner().invoke(make_app(), ["status", "--address", "127.0.0.1:9"])
    assert isinstance(result.exception, status.NoCluster)
    assert "--address 127.0.0.1:9" in str(result.exception)
    assert "name one that runs" in str(result.exception)


def run_status(ray: Any, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = "from aibrix_ray.cli import main; main()"
    address = ray.get_runtime_context().gcs_address
    return subprocess.run(
        [sys.executable, "-c", code, "status", "--address", address, *arguments],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.ray
async def test_it_reads_a_running_cluster(cluster: Any) -> None:
    from aibrix_ray.telemetry.actor import ensure_telemetry

    without = await asyncio.to_thread(run_status, cluster)
    assert without.returncode == 2
    assert "no gateway or replica group runs on this cluster" in without.stderr
    telemetry = await asyncio.to_thread(ensure_telemetry)
    await telemetry.report.remote(wire.encode_batch(map(wire.encode_stats, make_fleet(3))))
    result = await asyncio.to_thread(run_status, cluster, "--json")
    assert result.returncode == 0, result.stderr
    (model,) = json.loads(result.stdout)["models"]
    assert (model["name"], model["ready"]) == ("meta-llama/Llama-3.1-8B", 3)
    assert result.stderr == ""


@pytest.mark.ray
@pytest.mark.skipif(
    os.environ.get("RAY_AUTH_MODE", "token") != "token", reason="Ray runs without tokens here"
)
async def test_a_refused_token_is_told_with_the_way_out(cluster: Any) -> None:
    result = await asyncio.to_thread(
        run_status, cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64
    )
    assert result.returncode == 2
    assert "refused our authentication token; set RAY_AUTH_MODE=token" in result.stderr
    assert len(result.stderr.splitlines()) == 1
