"""What a running engine holds: aborted when its client leaves, counted while it works."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.engines.conftest import CONTEXT, MODEL, EngineProcess, eventually
from tests.engines.test_vllm_engine import CHAT, COMPLETION, META, ask, chat, completion

pytestmark = pytest.mark.engine

ABORTED_WITHIN_S = 2.0
LONG: dict[str, Any] = {"max_tokens": CONTEXT - 64, "n": 4, "temperature": 1.0}


async def leave_and_check(engine: EngineProcess, client: httpx.AsyncClient, streamed: bool) -> None:
    before = await engine.stats()
    body = chat(stream=streamed, **LONG)
    asked = asyncio.create_task(ask(client, CHAT, body))

    async def runs() -> bool:
        return await engine.running() == 4

    async def rests() -> bool:
        return await engine.running() == 0

    await eventually(runs, within_s=30.0, what="four sequences run")
    asked.cancel()  # closes the connection
    with pytest.raises(asyncio.CancelledError):
        await asked
    took_s = await eventually(rests, within_s=30.0, what="the engine rests")
    after = await engine.stats()
    made = after["generation_tokens_total"] - before["generation_tokens_total"]
    assert made < 4 * LONG["max_tokens"], "it was aborted, not finished"
    assert after["kv_usage"] == 0.0
    assert took_s < ABORTED_WITHIN_S


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
async def test_a_client_that_leaves_aborts_its_request(
    engine: EngineProcess, streamed: bool
) -> None:
    async with engine.client() as client:
        await leave_and_check(engine, client, streamed)


async def test_a_client_that_leaves_a_read_stream_aborts_its_request(
    engine: EngineProcess,
) -> None:
    async with (
        engine.client() as client,
        client.stream("POST", CHAT, json=chat(stream=True, **LONG), headers=META) as answer,
    ):
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")

    async def rests() -> bool:
        return await engine.running() == 0

    await eventually(rests, within_s=ABORTED_WITHIN_S, what="the engine rests")


async def test_statistics_count_what_was_done(
    client: httpx.AsyncClient, engine: EngineProcess
) -> None:
    before = await engine.stats()
    answer = await ask(client, CHAT, chat("count what was done", n=2, temperature=1.0))
    usage = answer.json()["usage"]
    after = await engine.stats()
    assert after["sequence"] == before["sequence"] + 1
    assert after["epoch"] == "epoch-1"
    assert (after["replica_id"], after["group"], after["model"]) == ("r-1", "g", MODEL)
    assert after["requests_total"] - before["requests_total"] == 2  # one a choice
    made = after["generation_tokens_total"] - before["generation_tokens_total"]
    assert made == usage["completion_tokens"]
    read = after["prompt_tokens_total"] - before["prompt_tokens_total"]
    assert read == 2 * usage["prompt_tokens"]  # each choice's own
    assert after["max_running"] == 8
    assert after["kv_blocks"] > CONTEXT // 32
    assert (after["running"], after["waiting"], after["kv_usage"]) == (0, 0, 0.0)
    assert after["preemptions_total"] == 0


async def test_more_than_fits_waits(engine: EngineProcess) -> None:
    async with engine.client() as client:
        body = completion("wait", n=12, temperature=1.0, max_tokens=256)
        asked = asyncio.create_task(ask(client, COMPLETION, body))

        async def waits() -> bool:
            stats = await engine.stats()
            held = (stats["running"], stats["waiting"])
            return held == (8, 4) and float(stats["kv_usage"]) > 0.0

        await eventually(waits, within_s=30.0, what="eight run and four wait")
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
