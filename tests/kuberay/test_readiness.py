"""What KubeRay asks a pod, answered by the gateway's own application."""

from __future__ import annotations

import httpx
import pytest

from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import GatewayApp


async def ask(gateway: GatewayApp, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
        return await client.get(path)


@pytest.fixture
async def gateway() -> GatewayApp:
    return GatewayApp(GatewayArgs(), GatewayUserConfig())


async def test_a_ready_gateway_answers_200_with_the_word_that_kuberay_greps_for(
    gateway: GatewayApp,
) -> None:
    gateway.ready = True
    answer = await ask(gateway, "/-/healthz")
    assert answer.status_code == 200
    assert "success" in answer.text


async def test_a_gateway_that_starts_or_drains_is_taken_out_of_the_service(
    gateway: GatewayApp,
) -> None:
    for ready, draining in ((False, False), (True, True)):
        gateway.ready, gateway.draining = ready, draining
        answer = await ask(gateway, "/-/healthz")
        assert answer.status_code == 503
        assert "success" not in answer.text


async def test_the_routes_are_told_as_serves_proxy_tells_them(gateway: GatewayApp) -> None:
    assert (await ask(gateway, "/-/routes")).json() == {"/": "gateway"}
