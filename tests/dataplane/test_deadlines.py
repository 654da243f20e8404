"""Every wait has an end, on a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest

from tests.dataplane.backends import (
    DONE,
    SSE,
    Backend,
    Call,
    MakeBackend,
    MakeRawBackend,
    Peer,
    chunk,
    event,
    hang,
)
from tests.dataplane.forms import CONTENT_TYPE, TRANSCRIBE, field, form
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.test_streams import assert_ends_with_one_error
from tests.dataplane.waiting import Clock, eventually, within


async def trickle(call: Call) -> None:
    await call.begin(SSE)
    await call.write(event("a"))
    await call.until_disconnect()


async def test_no_first_byte_in_time_is_504_and_aborts_the_request(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    replica, other = await backend(hang), await backend()
    running = await gateway([replica], clock=clock, first_byte_timeout_s=30)
    post = asyncio.create_task(running.post())
    call = await replica.call()
    running.set_members([replica, other])
    clock.advance(29.9)
    await clock.looked_at()
    assert not post.done()
    clock.advance(0.2)
    answer = await within(post)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (
        504,
        "deadline_exceeded",
        "timeout_error",
    )
    assert "30 s" in error["message"]
    await within(call.disconnected.wait())
    assert other.calls == [], "a request that took too long is not begun again"
    await running.until_ended("failed", 504)


async def test_a_stream_that_pauses_too_long_ends_with_one_error(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    replica = await backend(trickle)
    running = await gateway([replica], clock=clock, first_byte_timeout_s=600, idle_timeout_s=30)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    assert await client.chunk() == event("a")
    clock.advance(29)
    await clock.looked_at()
    assert running.in_flight
    clock.advance(2)
    rest = b""
    while data := await client.chunk():
        rest += data
    assert_ends_with_one_error(rest, before=b"", status=504)
    await within((await replica.call()).disconnected.wait())
    await running.until_ended("failed", 504)


async def test_each_byte_of_an_answer_grants_another_pause(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    go = asyncio.Queue[None]()

    async def handler(call: Call) -> None:
        await call.begin(SSE)
        for i in range(5):
            await call.write(event(str(i)))
            await go.get()
        await call.end(DONE)

    running = await gateway([await backend(handler)], clock=clock, idle_timeout_s=30)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    for i in range(5):
        assert await client.chunk() == event(str(i))
        clock.advance(29)
        await clock.looked_at()
        go.put_nowait(None)
    assert await client.chunk() == DONE
    await running.until_ended("completed", 200)


async def test_half_an_event_is_progress_too(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.begin_stream()
        await peer.chunk(event("a"))
        await go.wait()
        await peer.chunk(b"data: ")
        await peer.until_closed()

    running = await gateway([await raw_backend(script)], clock=clock, idle_timeout_s=30)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    await client.chunk()
    (exchange,) = running.app.forwarder.under_way
    before_s = exchange.deadline_s
    clock.advance(20)
    go.set()
    await eventually(lambda: exchange.deadline_s > before_s, "the deadline moves")
    clock.advance(20)
    await clock.looked_at()
    assert running.in_flight
    clock.advance(11)
    rest = b""
    while data := await client.chunk():
        rest += data
    assert_ends_with_one_error(rest, before=b"", status=504)


async def test_a_large_plain_answer_that_pauses_too_long_breaks_the_connection(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    clock = Clock()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await peer.write(chunk(bytes(1_000_000)))
        await peer.until_closed()

    running = await gateway([await raw_backend(script)], clock=clock, idle_timeout_s=30)
    running.tolerate("ASGI callable returned without completing response")
    client = await running.connect()
    client.post({"model": "m"})
    await client.head()
    assert await client.chunk()
    clock.advance(31)
    assert not (await client.rest()).endswith(b"0\r\n\r\n")
    await running.until_ended("failed", 504)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_the_whole_request_has_a_deadline_however_busy_it_is(
    backend: MakeBackend, gateway: MakeGateway, streamed: bool
) -> None:
    clock = Clock()
    replica = await backend(trickle if streamed else hang)
    running = await gateway(
        [replica], clock=clock, timeout_s=10, first_byte_timeout_s=10, idle_timeout_s=10
    )
    client = await running.connect()
    client.post({"model": "m"})
    await replica.call()
    if streamed:
        clock.advance(6)
        await client.head()
        assert await client.chunk() == event("a")
        clock.advance(5)
        rest = b""
        while data := await client.chunk():
            rest += data
        assert_ends_with_one_error(rest, before=b"", status=504)
    else:
        clock.advance(11)
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
    await running.until_ended("failed", 504)


async def test_a_request_that_is_held_has_the_same_deadline(gateway: MakeGateway) -> None:
    clock = Clock()
    running = await gateway([], clock=clock, timeout_s=10)  # waits 60 s by default
    post = asyncio.create_task(running.post())
    await running.until_held()
    clock.advance(11)
    assert (await within(post)).status_code == 504
    assert running.held == 0
    await running.until_ended("failed", 504)


async def test_a_stuck_replica_does_not_block_requests_to_others(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    stuck, others = await backend(hang), [await backend(), await backend()]
    running = await gateway([stuck, *others], clock=clock)
    waiting = [asyncio.create_task(running.post()) for _ in range(3)]
    await stuck.call()
    for _ in range(6):
        answer = await within(running.post())
        assert answer.headers["target-replica"] != "m-0"
    clock.advance(601)
    statuses = sorted([(await within(post)).status_code for post in waiting])
    assert statuses == [200, 200, 504]


async def test_a_replica_that_never_reads_an_upload_is_given_up(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    connected = asyncio.Event()

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connected.set()
        await asyncio.Event().wait()

    running = await gateway([await raw_backend(script)], clock=clock, first_byte_timeout_s=30)
    running.tolerate("the handler is closed")
    body = form(field("model", b"m"), field("file", bytes(16_000_000)))
    post = asyncio.create_task(
        running.http.post(TRANSCRIBE, content=body, headers={"content-type": CONTENT_TYPE})
    )
    await within(connected.wait())
    clock.advance(31)
    assert (await within(post)).status_code == 504


async def flood(call: Call) -> None:
    await call.begin(SSE)
    while not call.disconnected.is_set():
        await call.write(event("x" * 100_000))
        await asyncio.sleep(0)


async def stall(gateway: Gateway, replica: Backend) -> None:
    """Return once the gateway cannot write to its client any more."""
    await replica.call()
    looks = 0

    def stays_paused() -> bool:
        nonlocal looks  # the kernel's buffers grow, and take some more now and then
        looks = looks + 1 if any(c.flow.write_paused for c in gateway.server.connections) else 0
        return looks > 20

    await eventually(stays_paused, "the client is slow")


async def test_a_client_that_reads_slowly_but_reads_gets_everything(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.begin(SSE)
        for _ in range(100):
            await call.write(event("x" * 100_000))
        await call.end(DONE)

    clock = Clock()
    replica = await backend(handler)
    running = await gateway([replica], clock=clock, idle_timeout_s=30)
    client = await running.connect(receive_buffer_bytes=65536)
    client.post({"model": "m", "stream": True})
    await stall(running, replica)
    clock.advance(29)
    await clock.looked_at()
    answer = await client.answer()
    assert answer.body == event("x" * 100_000) * 100 + DONE
    await running.until_ended("completed", 200)


async def test_a_client_that_stops_reading_is_cut_off(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    replica = await backend(flood)
    running = await gateway([replica], clock=clock, idle_timeout_s=30)
    running.tolerate("")
    client = await running.connect(receive_buffer_bytes=4096)
    client.post({"model": "m", "stream": True})
    await stall(running, replica)
    clock.advance(31)
    await running.until_idle()
    try:
        await eventually(lambda: not running.server.connections, "it is cut off", seconds=0.5)
        await running.until_ended("failed", 504)
    finally:
        client.leave()


async def test_deadlines_that_are_configured_hold_on_the_real_clock(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(hang)], first_byte_timeout_s=0.05)
    assert (await within(running.post())).status_code == 504
