"""Clients that leave and clients that give up: the engine stops, the counts go back."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import AsyncOpenAI

from tests.conformance.requests import CHAT, chat
from tests.dataplane.gateways import Gateway
from tests.engines.conftest import CONTEXT, EngineProcess, eventually

pytestmark = [pytest.mark.engine, pytest.mark.slow]

#: Seconds of generating, if nobody stops it.
LONG = chat(max_tokens=CONTEXT - 100, extra_body={"ignore_eos": True})


async def until_nothing_runs(gateway: Gateway, replica: EngineProcess) -> None:
    async def nothing_runs() -> bool:
        return await replica.running() == 0

    await gateway.until_idle()
    await eventually(nothing_runs, within_s=5.0, what="the engine has nothing left to do")


async def until_it_runs(replica: EngineProcess) -> None:
    async def it_runs() -> bool:
        return await replica.running() > 0

    await eventually(it_runs, within_s=10.0, what="the engine generates")


async def test_a_closed_stream_stops_the_engine(
    client: AsyncOpenAI, gateway: Gateway, replica: EngineProcess
) -> None:
    stream = await client.chat.completions.create(**LONG, stream=True)
    await anext(aiter(stream))
    await until_it_runs(replica)
    await stream.close()
    await until_nothing_runs(gateway, replica)


async def test_a_cancelled_call_stops_the_engine(
    client: AsyncOpenAI, gateway: Gateway, replica: EngineProcess
) -> None:
    call = asyncio.ensure_future(client.chat.completions.create(**LONG))
    await until_it_runs(replica)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until_nothing_runs(gateway, replica)


async def test_a_clients_time_out_stops_the_engine(
    client: AsyncOpenAI, gateway: Gateway, replica: EngineProcess
) -> None:
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(**LONG, timeout=0.3)
    await until_nothing_runs(gateway, replica)


async def test_a_killed_client_stops_the_engine(gateway: Gateway, replica: EngineProcess) -> None:
    raw = await gateway.connect()
    body = {name: value for name, value in LONG.items() if name != "extra_body"}
    raw.post(body | {"ignore_eos": True, "stream": True}, CHAT, "content-type: application/json")
    await raw.head()
    await until_it_runs(replica)
    raw.leave()
    await until_nothing_runs(gateway, replica)


async def test_one_that_leaves_takes_nobody_along(
    client: AsyncOpenAI, gateway: Gateway, replica: EngineProcess
) -> None:
    stays = asyncio.ensure_future(
        client.chat.completions.create(**LONG | {"max_tokens": 200, "temperature": 0})
    )
    stream = await client.chat.completions.create(**LONG, stream=True)
    await anext(aiter(stream))
    await stream.close()
    answer = await stays
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 200
    await until_nothing_runs(gateway, replica)
