"""The endpoints that the gateway answers itself."""

from __future__ import annotations

import pytest

from aibrix_ray.types import GroupInfo
from tests.dataplane.backends import MakeBackend
from tests.dataplane.gateways import MakeGateway

SLASHES = "meta-llama/Llama-3.1-8B"


async def test_all_models_and_aliases_are_listed(gateway: MakeGateway) -> None:
    running = await gateway({"m": [], SLASHES: []}, aliases=("gpt-4o",), models={SLASHES: {}})
    running.app.fleet.set_groups(
        [
            GroupInfo(name="late", model="m", created_s=20.5),
            GroupInfo(name="early", model="m", created_s=10.9),
            GroupInfo(name="other", model=SLASHES),
        ]
    )
    answer = await running.http.get("/v1/models")
    assert answer.headers["content-type"] == "application/json"
    models = answer.json()
    assert models["object"] == "list"
    cards = {card["id"]: card for card in models["data"]}
    assert len(models["data"]) == 3
    assert cards["m"] == {
        "id": "m",
        "object": "model",
        "created": 10,
        "owned_by": "aibrix_ray",
        "root": "m",
    }
    assert cards["gpt-4o"] == {**cards["m"], "id": "gpt-4o"}
    assert cards[SLASHES]["root"] == SLASHES


async def test_no_models_are_an_empty_list(gateway: MakeGateway) -> None:
    running = await gateway({}, aliases=("alias",))
    assert (await running.http.get("/v1/models")).json() == {"object": "list", "data": []}


@pytest.mark.parametrize(
    ("path", "name", "root"),
    [
        (SLASHES, SLASHES, SLASHES),
        ("meta-llama%2FLlama-3.1-8B", SLASHES, SLASHES),
        ("gpt%2D4o", "gpt-4o", SLASHES),
        ("gpt-4o?x=1", "gpt-4o", SLASHES),
    ],
)
async def test_one_model_is_found_by_its_name_or_alias(
    gateway: MakeGateway, path: str, name: str, root: str
) -> None:
    running = await gateway({SLASHES: []}, models={SLASHES: {"aliases": ["gpt-4o"]}})
    client = await running.connect()
    client.get(f"/v1/models/{path}")
    card = (await client.answer()).json()
    assert (card["id"], card["root"]) == (name, root)


@pytest.mark.parametrize(
    "path", ["/v1/models/none", "/v1/models/", "/v1/models/m/", "/v1/models/M"]
)
async def test_a_model_that_is_not_there_is_404(gateway: MakeGateway, path: str) -> None:
    client = await (await gateway()).connect()
    client.get(path)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


async def test_it_is_healthy_as_soon_as_it_answers(gateway: MakeGateway) -> None:
    running = await gateway()
    running.app.ready = False
    answer = await running.http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_it_is_ready_from_its_first_membership_until_it_drains(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway({"m": [await backend()], "n": []})
    app = running.app

    async def readyz() -> tuple[int, str]:
        answer = await running.http.get("/readyz")
        assert answer.json()["ready_replicas"] == {"m": 1, "n": 0}
        return answer.status_code, answer.json()["status"]

    app.ready = False
    assert await readyz() == (503, "starting")
    app.ready = True
    assert await readyz() == (200, "ready")
    app.draining = True
    assert await readyz() == (503, "draining")


async def test_kuberays_probe_finds_success_until_the_gateway_drains(gateway: MakeGateway) -> None:
    running = await gateway()

    async def probe() -> tuple[int, bool]:
        answer = await running.http.get("/-/healthz")
        return answer.status_code, "success" in answer.text

    assert await probe() == (200, True)
    running.app.draining = True
    assert await probe() == (503, False)
    running.app.draining, running.app.ready = False, False
    assert await probe() == (503, False)


async def test_kuberays_probe_finds_routes(gateway: MakeGateway) -> None:
    answer = await (await gateway()).http.get("/-/routes")
    assert (answer.status_code, answer.json()) == (200, {"/": "gateway"})


async def test_requests_are_served_while_the_gateway_drains(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()])
    running.app.draining = True
    assert (await running.post()).status_code == 200
    assert (await running.http.get("/v1/models")).status_code == 200
