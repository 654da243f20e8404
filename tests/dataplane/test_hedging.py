"""A second replica is asked where the first one is slow; the client gets one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aibrix_ray.types import Ending
from tests.dataplane.backends import (
    DONE,
    JSON,
    SSE,
    Backend,
    Call,
    Handler,
    MakeBackend,
    echo,
    event,
    hang,
)
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.test_retries import FIRST, first_policy
from tests.dataplane.waiting import Clock, eventually, within

SOON_S = 0.01


def hedges(gateway: Gateway) -> int:
    return int(gateway.app.metrics.of("m").hedges[0])


async def make_two(
    backend: MakeBackend,
    gateway: MakeGateway,
    first: Handler,
    second: Handler,
    *,
    hedge_after_s: float | None = SOON_S,
    **model: Any,
) -> tuple[Gateway, Backend, Backend]:
    """Return a gateway that asks `first` first."""
    slow, fast = await backend(first), await backend(second)
    running = await gateway([slow, fast], routing=FIRST, hedge_after_s=hedge_after_s, **model)
    return running, slow, fast


def outcomes(gateway: Gateway) -> dict[str, Ending]:
    return {each.replica_id: each.ending for each in first_policy(gateway).outcomes}


async def test_who_answers_first_wins_and_the_other_is_aborted(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running, slow, fast = await make_two(backend, gateway, hang, echo)
    answer = await within(running.post())
    assert (answer.status_code, answer.headers["target-replica"]) == (200, "m-1")
    await within((await slow.call()).disconnected.wait())
    assert (len(slow.calls), len(fast.calls), hedges(running)) == (1, 1, 1)
    await running.until_idle()
    assert outcomes(running) == {"m-0": Ending.CANCELLED, "m-1": Ending.COMPLETED}
    assert running.endings() == {("completed", 200): 1}
    assert running.ready == ["m-0", "m-1"], "to be slower once ejects nobody"


async def test_the_first_one_may_still_win(backend: MakeBackend, gateway: MakeGateway) -> None:
    asked_too = asyncio.Event()

    async def slow(call: Call) -> None:
        await asked_too.wait()
        await echo(call)

    async def second(call: Call) -> None:
        asked_too.set()
        await hang(call)

    running, _, fast = await make_two(backend, gateway, slow, second)
    assert (await within(running.post())).headers["target-replica"] == "m-0"
    await within((await fast.call()).disconnected.wait())
    await running.until_idle()
    assert outcomes(running) == {"m-0": Ending.COMPLETED, "m-1": Ending.CANCELLED}


async def test_a_stream_is_one_replicas_and_is_not_asked_for_again(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("a"))
        await release.wait()
        await call.end(DONE)

    running, _, fast = await make_two(backend, gateway, handler, echo)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    assert await client.chunk() == event("a")
    await asyncio.sleep(10 * SOON_S)
    release.set()
    assert await client.chunk() == DONE
    assert (fast.calls, hedges(running)) == ([], 0)


async def test_a_slow_stream_comes_from_the_second(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("a"))
        await call.end(DONE)

    running, slow, _ = await make_two(backend, gateway, hang, handler)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    answer = await client.answer()
    assert (answer.header("target-replica"), answer.body) == ("m-1", event("a") + DONE)
    await within((await slow.call()).disconnected.wait())


@pytest.mark.parametrize("hedge_after_s", [None, 3600.0])
async def test_by_default_nobody_is_asked_twice(
    backend: MakeBackend, gateway: MakeGateway, hedge_after_s: float | None
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await release.wait()
        await echo(call)

    running, slow, fast = await make_two(
        backend, gateway, handler, echo, hedge_after_s=hedge_after_s
    )
    post = asyncio.create_task(running.post())
    await slow.call()
    await asyncio.sleep(5 * SOON_S)
    release.set()
    assert (await within(post)).headers["target-replica"] == "m-0"
    assert (fast.calls, hedges(running)) == ([], 0)


async def test_with_one_replica_there_is_no_second(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await release.wait()
        await echo(call)

    only = await backend(handler)
    running = await gateway([only], hedge_after_s=SOON_S)
    post = asyncio.create_task(running.post())
    await only.call()
    await asyncio.sleep(5 * SOON_S)
    release.set()
    assert (await within(post)).status_code == 200
    assert hedges(running) == 0


async def test_if_the_second_fails_the_first_is_waited_for(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    died = asyncio.Event()

    async def slow(call: Call) -> None:
        await died.wait()
        await echo(call)

    async def die(call: Call) -> None:
        death = asyncio.create_task(dying[0].kill())
        try:
            await call.until_disconnect()
            await death
        finally:
            died.set()

    dying: list[Backend] = []
    running, _, second = await make_two(backend, gateway, slow, die)
    dying.append(second)
    assert (await within(running.post())).headers["target-replica"] == "m-0"
    await running.until_idle()
    assert outcomes(running) == {"m-0": Ending.COMPLETED, "m-1": Ending.FAILED}
    assert running.retries == 1


async def test_if_both_fail_a_third_is_asked(backend: MakeBackend, gateway: MakeGateway) -> None:
    both = asyncio.Event()
    dying: list[Backend] = []

    async def die_together(call: Call) -> None:
        if sum(len(each.calls) for each in dying) == 2:
            both.set()
        await both.wait()
        me = next(each for each in dying if call in each.calls)
        death = asyncio.create_task(me.kill())
        await call.until_disconnect()
        await death

    dying += [await backend(die_together), await backend(die_together)]
    third = await backend()
    running = await gateway([*dying, third], routing=FIRST, hedge_after_s=SOON_S)
    assert (await within(running.post())).headers["target-replica"] == "m-2"
    await running.until_idle()
    assert outcomes(running)["m-0"] is outcomes(running)["m-1"] is Ending.FAILED


async def test_a_client_that_leaves_aborts_both(backend: MakeBackend, gateway: MakeGateway) -> None:
    running, slow, fast = await make_two(backend, gateway, hang, hang)
    client = await running.connect()
    client.post({"model": "m"})
    calls = [await slow.call(), await fast.call()]
    client.leave()
    for call in calls:
        await within(call.disconnected.wait())
    await running.until_ended("cancelled", 499)
    assert set(outcomes(running).values()) == {Ending.CANCELLED}


async def test_a_deadline_ends_both(backend: MakeBackend, gateway: MakeGateway) -> None:
    clock = Clock()
    running, slow, fast = await make_two(
        backend, gateway, hang, hang, clock=clock, first_byte_timeout_s=30
    )
    post = asyncio.create_task(running.post())
    calls = [await slow.call(), await fast.call()]
    clock.advance(31)
    assert (await within(post)).status_code == 504
    for call in calls:
        await within(call.disconnected.wait())
    await running.until_ended("failed", 504)


async def test_a_full_fleet_is_not_asked_twice(backend: MakeBackend, gateway: MakeGateway) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await release.wait()
        await call.answer(call.body, headers=[JSON])

    replicas = [await backend(handler), await backend(handler)]
    running = await gateway(replicas, max_outstanding=1, hedge_after_s=SOON_S)
    posts = [asyncio.create_task(running.post()) for _ in range(2)]
    await eventually(lambda: all(each.calls for each in replicas), "both are busy")
    await asyncio.sleep(5 * SOON_S)
    assert hedges(running) == 0
    release.set()
    assert {(await within(post)).status_code for post in posts} == {200}


async def test_both_hold_a_place_while_both_are_asked(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running, slow, fast = await make_two(backend, gateway, hang, hang, max_outstanding=1)
    client = await running.connect()
    client.post({"model": "m"})
    await slow.call()
    await fast.call()
    assert [running.replica(i).in_flight for i in range(2)] == [1, 1]
    post = asyncio.create_task(running.post())
    await running.until_waiting()
    client.leave()
    await slow.call(1)
    post.cancel()
    await asyncio.gather(post, return_exceptions=True)
