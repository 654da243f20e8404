"""A request that is over is freed at once; in a circle it would wait for the collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from aibrix_ray.dataplane.exchange import Exchange
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, echo, event, hang
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.waiting import within


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Keep the collector away; `left` sees what would wait for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> int:
    """Return how many requests only the collector frees; a connection keeps its last one."""
    before = count()
    gc.collect()
    return before - count()


def count() -> int:
    return sum(type(each) is Exchange for each in gc.get_objects())


async def answer(call: Call) -> None:
    if not call.json().get("stream"):
        return await echo(call)
    await call.begin(SSE)
    await call.write(event("a"))
    await call.end(DONE)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_answered_request_leaves_nothing(
    backend: MakeBackend, gateway: MakeGateway, stream: bool
) -> None:
    running = await gateway([await backend(answer)])
    for _ in range(5):
        assert (await running.post({"model": "m", "stream": stream})).status_code == 200
    await running.until_idle()
    assert left() == 0


async def test_a_request_that_waited_leaves_nothing(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(answer)], max_outstanding=1)
    await within(asyncio.gather(*(running.post() for _ in range(10))))
    await running.until_idle()
    assert left() == 0


async def test_a_request_that_was_asked_twice_leaves_nothing(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(hang), await backend(answer)], hedge_after_s=0.01)
    await within(asyncio.gather(*(running.post() for _ in range(4))))
    await running.until_idle()
    assert left() == 0
