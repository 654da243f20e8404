"""A gateway that leaves: nobody is cut off, and everybody is sent to its siblings."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, echo, event
from tests.dataplane.clients import CHAT, RawClient, head
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.waiting import eventually


async def test_a_kept_connection_is_closed_with_its_next_answer(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U54: a client on a kept connection is sent elsewhere, and told so in time."""
    running = await gateway([await backend()])
    kept, owned = await running.connect(), await running.connect()
    kept.post({"model": "m"})
    assert (await kept.answer()).header("connection") is None
    owned.get("/healthz")
    await owned.answer()
    await running.server.stop_listening()
    running.server.drain_connections()
    kept.post({"model": "m"})
    answer = await kept.answer()
    assert (answer.status, answer.header("connection")) == (200, "close")
    assert await kept.rest() == b""
    owned.get("/readyz")
    assert (await owned.answer()).header("connection") == "close"
    assert await owned.rest() == b""
    await eventually(lambda: not running.server.connections, "all have gone")


async def test_an_idle_connection_stays_open_for_one_more_request(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U54's neighbour: the connection is idle when the drain begins."""
    running = await gateway([await backend()])
    fresh = await running.connect()
    await eventually(lambda: len(running.server.connections) == 1, "it is accepted")
    running.server.drain_connections()
    (connection,) = running.server.connections
    assert connection.idle
    fresh.post({"model": "m"})
    assert (await fresh.answer()).header("connection") == "close"


async def test_requests_under_way_finish_and_then_their_connection_closes(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        if b"stream" in call.body:
            await call.begin(SSE)
            await call.write(event("a"))
            await release.wait()
            return await call.end(DONE)
        await release.wait()
        await echo(call)

    replica = await backend(handler)
    running = await gateway([replica])
    plain, streamed = await running.connect(), await running.connect()
    plain.post({"model": "m"})
    streamed.post({"model": "m", "stream": True})
    await streamed.head()
    assert await streamed.chunk() == event("a")
    await replica.call(1)
    assert not any(connection.idle for connection in running.server.connections)
    await running.server.stop_listening()
    running.server.drain_connections()
    release.set()
    answer = await plain.answer()
    assert (answer.json(), answer.header("connection")) == ({"model": "m"}, "close")
    assert await plain.rest() == b""
    assert await streamed.chunk() == DONE
    assert await streamed.chunk() == b""
    assert await streamed.rest() == b""
    assert running.endings() == {("completed", 200): 2}


async def test_nobody_new_is_accepted(gateway: MakeGateway) -> None:
    running = await gateway()
    await running.server.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        await RawClient.open(running.port)


async def test_who_was_in_the_queue_is_accepted(backend: MakeBackend, gateway: MakeGateway) -> None:
    running = await gateway([await backend()])
    await running.post()
    queued = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(8)]
    await running.server.stop_listening()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(sock) for sock in queued]
        await eventually(lambda: len(running.server.connections) > 8, "all 8", seconds=0.5)
        running.server.drain_connections()
        assert len(clients) == 8


async def test_closing_cuts_what_is_still_under_way_and_counts_it(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("a"))
        await call.until_disconnect()

    replica = await backend(handler)
    running = await gateway([replica])
    running.tolerate("Exception in ASGI application")
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    assert await client.chunk() == event("a")
    await running.server.close()
    assert await client.rest() == b""
    await running.until_idle()
    assert ("completed", 200) not in running.endings()


async def test_after_the_grace_idle_connections_are_closed_while_a_stream_goes_on(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U54's neighbour: a stream is under way on another connection."""
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        if b"stream" not in call.body:
            return await echo(call)
        await call.begin(SSE)
        await call.write(event("a"))
        await release.wait()
        await call.end(DONE)

    running = await gateway([await backend(handler)])
    kept, silent, streamed = [await running.connect() for _ in range(3)]
    kept.post({"model": "m"})
    assert (await kept.answer()).status == 200
    streamed.post({"model": "m", "stream": True})
    await streamed.head()
    assert await streamed.chunk() == event("a")
    await running.server.stop_listening()
    running.server.drain_connections()
    running.server.close_idle_connections()
    assert await kept.rest() == b""
    assert await silent.rest() == b""
    release.set()
    assert await streamed.chunk() == DONE
    assert await streamed.chunk() == b""


async def test_a_request_that_is_on_its_way_when_idle_ones_are_closed_is_answered(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()])
    heads, bodies = await running.connect(), await running.connect()
    heads.send(head("POST", CHAT, "content-length: 14")[:10])
    bodies.send(head("POST", CHAT, "content-length: 14") + b'{"model"')
    await eventually(
        lambda: [c.idle for c in running.server.connections] == [False, False], "both have begun"
    )
    running.server.drain_connections()
    running.server.close_idle_connections()
    heads.send(head("POST", CHAT, "content-length: 14")[10:] + b'{"model": "m"}')
    bodies.send(b': "m"}')
    for client in (heads, bodies):
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert await client.rest() == b""


async def test_who_is_accepted_while_it_drains_gets_one_answer(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()])
    running.server.drain_connections()
    late = await running.connect()
    late.post({"model": "m"})
    answer = await late.answer()
    assert (answer.status, answer.header("connection")) == (200, "close")
    assert await late.rest() == b""
