"""Processes are killed under load; clients must not notice more than the docs say.

One installation of two gateways and two simulated replicas serves all tests of this module; each
leaves it whole.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.installation import Installation, alive, metric, simulated_file, wait_until
from tests.e2e.load import Load

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with Installation(simulated_file(replicas=2)) as running:
        yield running


@pytest.fixture(autouse=True)
def whole(installation: Installation) -> Iterator[None]:
    """Two gateways and two replicas before and after every test, and nothing in flight."""
    _wait_whole(installation)
    yield
    _wait_whole(installation)
    wait_until(lambda: _in_flight(installation) == 0, timeout_s=10.0, what="nothing in flight")


async def test_a_killed_replica_costs_no_plain_request(installation: Installation) -> None:
    victim = installation.engines()[0]
    async with Load(installation.url, clients=64, streaming=True) as load:
        await load.until(200)
        os.kill(victim, signal.SIGKILL)
        await load.until(200)
        await asyncio.to_thread(_wait_whole, installation)
    assert load.seen.lost == []
    assert load.seen.broken == []
    assert load.seen.completed > 100
    assert load.seen.streams_whole > 50
    assert victim not in installation.engines()


async def test_a_killed_gateway_costs_only_what_clients_retry(installation: Installation) -> None:
    victim = installation.gateways()[0]
    refused = 0
    async with Load(installation.url, clients=64, retries=2) as load:
        await load.until(200)
        os.kill(victim, signal.SIGKILL)
        until_s = time.monotonic() + 3.0
        while time.monotonic() < until_s:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", installation.port)
                writer.close()
                await writer.wait_closed()
            except ConnectionRefusedError:
                refused += 1
            except OSError:
                pass  # it was in the dead process's queue: reset, not refused
        await load.until(200)
    assert refused == 0, "the port was closed"
    assert load.seen.lost == []


async def test_a_stopped_gateway_is_out_within_15_s(installation: Installation) -> None:
    victim = installation.gateways()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        wait_until(lambda: not alive(victim), timeout_s=15.0, what="the stopped gateway is out")
    finally:
        if alive(victim):
            os.kill(victim, signal.SIGCONT)


async def test_a_killed_controller_is_not_noticed(installation: Installation) -> None:
    before = installation.gateways(), installation.engines()
    victim = installation.controller()
    async with Load(installation.url, clients=16, streaming=True) as load:
        await load.until(100)
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(
            wait_until,
            lambda: installation.pids("ServeController") not in ([], [victim]),
            timeout_s=30.0,
            what="a new controller",
        )
        # Its recovery call to every replica comes now; a replica that fails it would be stopped.
        await load.until(300)
        await asyncio.sleep(5.0)
        await load.until(100)
    assert load.seen.lost == []
    assert load.seen.broken == []
    assert load.seen.streams_ended_by_error == 0
    assert (installation.gateways(), installation.engines()) == before


async def test_a_killed_telemetry_actor_is_not_noticed(installation: Installation) -> None:
    (victim,) = installation.pids("ray::Telemetry")
    async with Load(installation.url, clients=16, streaming=True) as load:
        await load.until(100)
        os.kill(victim, signal.SIGKILL)
        await load.until(300)
        await asyncio.to_thread(
            wait_until,
            lambda: installation.pids("ray::Telemetry") not in ([], [victim]),
            timeout_s=30.0,
            what="a new Telemetry actor",
        )
        await load.until(100)
    assert load.seen.lost == []
    assert load.seen.broken == []
    assert load.seen.streams_ended_by_error == 0


def _wait_whole(installation: Installation) -> None:
    wait_until(
        lambda: len(installation.gateways()) == 2 and len(installation.engines()) == 2,
        timeout_s=60.0,
        what="two gateways and two replicas",
    )
    wait_until(lambda: _ready(installation), timeout_s=60.0, what="both replicas are routed to")


def _ready(installation: Installation) -> bool:
    # Fresh connections reach either gateway.
    for _ in range(6):
        try:
            state = httpx.get(f"{installation.url}/readyz", timeout=2.0).json()
        except httpx.HTTPError:
            return False
        if state["ready_replicas"].get("sim") != 2:
            return False
    return True


def _in_flight(installation: Installation) -> int:
    return metric(installation.url, "aibrix_ray_in_flight_requests ")
