"""The application as its owner sees it: settings, life, requests that are none of its business."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest

from aibrix_ray.asgi import Message
from aibrix_ray.config import GatewayArgs, GatewayUserConfig, ModelConfig, RoutingConfig
from aibrix_ray.dataplane import Address, GatewayApp, Member
from aibrix_ray.errors import ConfigError
from aibrix_ray.types import GroupInfo
from tests.dataplane.backends import Call, MakeBackend, hang
from tests.dataplane.gateways import MakeGateway, make_user_config
from tests.dataplane.policies import First
from tests.dataplane.waiting import within

FIRST = RoutingConfig(policy="tests.dataplane.policies:First")


def make_app(**user_config: Any) -> GatewayApp:
    app = GatewayApp(GatewayArgs(), GatewayUserConfig(**user_config), seed=7)
    app.fleet.set_groups([GroupInfo(name="m", model="m"), GroupInfo(name="n", model="n")])
    return app


async def test_each_model_has_the_routing_of_its_own_or_that_of_all() -> None:
    app = make_app(models={"m": ModelConfig(routing=FIRST)})
    policies = {name: model.policy for name, model in app.pipeline.models.items()}
    assert isinstance(policies["m"], First)
    assert policies["m"].seed == 7
    assert type(policies["n"]).__name__ == "LeastRequest"
    app.reconfigure(GatewayUserConfig(routing=FIRST))
    assert all(isinstance(model.policy, First) for model in app.pipeline.models.values())


async def test_a_models_settings_are_those_of_its_configuration() -> None:
    config = ModelConfig(
        wait_for_replica_s=1.0,
        first_byte_timeout_s=2.0,
        idle_timeout_s=3.0,
        timeout_s=4.0,
        max_attempts=5,
        retry_after_s=6.0,
    )
    app = make_app(models={"m": config})
    settings = app.pipeline.models["m"].settings
    assert (settings.wait_for_replica_s, settings.first_byte_timeout_s) == (1.0, 2.0)
    assert (settings.idle_timeout_s, settings.timeout_s) == (3.0, 4.0)
    assert (settings.max_attempts, settings.retry_after_s) == (5, 6.0)


async def test_the_defaults_of_the_pipeline_are_those_of_the_configuration() -> None:
    app = make_app(models={"m": ModelConfig()})
    assert app.pipeline.models["m"].settings == app.pipeline.models["n"].settings


@pytest.mark.parametrize(
    ("routing", "path"),
    [
        ({"policy": "least-requests"}, "routing.policy"),
        ({"options": {"unknown": 1}}, "routing.options"),
        ({"policy": "no.such.module:Policy"}, "routing.policy"),
    ],
)
@pytest.mark.parametrize("of_model", [False, True])
async def test_unknown_routing_is_refused_and_the_old_settings_stay(
    routing: dict[str, Any], path: str, of_model: bool
) -> None:
    app = make_app(models={"m": ModelConfig(aliases=("old",))})
    config = RoutingConfig(**routing)
    wrong = (
        GatewayUserConfig(models={"n": ModelConfig(routing=config, aliases=("new",))})
        if of_model
        else GatewayUserConfig(routing=config, models={"n": ModelConfig(aliases=("new",))})
    )
    with pytest.raises(ConfigError) as refused:
        app.reconfigure(wrong)
    expected = f"user_config.models.n.{path}" if of_model else f"user_config.{path}"
    assert refused.value.path == expected
    assert app.pipeline.aliases == {"old": "m"}
    assert app.pipeline.resolve("old").name == "m"


async def test_a_request_under_way_keeps_the_policy_it_began_with(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await release.wait()
        await call.answer()

    replica = await backend(handler)
    running = await gateway([replica], routing={"policy": FIRST.policy})
    old = running.app.pipeline.models["m"].policy
    assert isinstance(old, First)
    post = asyncio.create_task(running.post())
    await replica.call()
    running.app.reconfigure(make_user_config({"timeout_s": 5.0, "idle_timeout_s": 5.0}, {}))
    assert running.app.pipeline.models["m"].policy is not old
    release.set()
    assert (await within(post)).status_code == 200


async def test_starting_and_closing_leaves_no_task(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    app = make_app()
    app.fleet.set_members("m", [Member("r1", Address(uds="/run/none.sock"))])
    before = asyncio.all_tasks()
    try:
        await app.start()
        assert len(asyncio.all_tasks()) == len(before) + 2
    finally:
        await app.close()
        gc.unfreeze()
    assert asyncio.all_tasks() == before
    await app.close()


async def test_what_is_no_http_request_is_ignored() -> None:
    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    app = make_app()
    for kind in ("lifespan", "websocket"):
        await app({"type": kind, "path": "/v1/chat/completions"}, receive, send)


async def test_deadlines_are_enforced_once_it_has_started(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(hang)], first_byte_timeout_s=0.01)
    try:
        await running.app.start()
        assert (await within(running.post())).status_code == 504
    finally:
        gc.unfreeze()
