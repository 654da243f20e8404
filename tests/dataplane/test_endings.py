"""A client that leaves: whenever it does, its generation is aborted and nothing stays counted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aibrix_ray.asgi import Message, unix_socket
from tests.dataplane.backends import (
    SSE,
    Call,
    MakeBackend,
    MakeRawBackend,
    Peer,
    echo,
    event,
    hang,
)
from tests.dataplane.clients import CHAT, RawClient, head
from tests.dataplane.forms import CONTENT_TYPE, TRANSCRIBE, field, form
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.waiting import eventually, within


async def trickle(call: Call) -> None:
    await call.begin(SSE)
    await call.write(event("a"))
    await call.until_disconnect()


@pytest.mark.parametrize("polite", [False, True], ids=["reset", "closed"])
async def test_a_client_that_leaves_before_a_plain_answer_aborts_it(
    backend: MakeBackend, gateway: MakeGateway, polite: bool
) -> None:
    replica = await backend(hang)
    running = await gateway([replica])
    client = await running.connect()
    client.post({"model": "m", "stream": False})
    call = await replica.call()
    client.close() if polite else client.leave()
    await within(call.disconnected.wait())
    await running.until_idle()
    await running.until_ended("cancelled", 499)
    samples = await running.samples()
    wrong = {("ending", "failed"), ("status", "200")}
    assert not [key for key, count in samples.items() if count and wrong & set(key[1])]


@pytest.mark.parametrize("polite", [False, True], ids=["reset", "closed"])
async def test_a_client_that_leaves_amid_a_stream_aborts_it(
    backend: MakeBackend, gateway: MakeGateway, polite: bool
) -> None:
    replica = await backend(trickle)
    running = await gateway([replica])
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    assert await client.chunk() == event("a")
    client.close() if polite else client.leave()
    await within((await replica.call()).disconnected.wait())
    await running.until_ended("cancelled", 499)


async def test_a_client_that_leaves_amid_a_large_plain_answer_aborts_it(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    closed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + bytes(1_000_000))
        await peer.until_closed()
        closed.set()

    running = await gateway([await raw_backend(script)])
    client = await running.connect()
    client.post({"model": "m"})
    await client.head()
    client.leave()
    await within(closed.wait())
    await running.until_ended("cancelled", 499)


async def test_a_client_that_leaves_while_it_is_held_is_not_served(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([])
    client, patient = await running.connect(), await running.connect()
    client.post({"model": "m"})
    patient.post({"model": "m"})
    await running.until_held(2)
    client.leave()
    await running.until_held(1)
    replica = await backend()
    running.set_members([replica])
    assert (await patient.answer()).status == 200
    assert len(replica.calls) == 1
    await running.until_idle()
    assert running.endings() == {("cancelled", 499): 1, ("completed", 200): 1}


async def test_a_client_that_leaves_while_uploading_is_not_served(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    running = await gateway([replica])
    json_client, form_client = await running.connect(), await running.connect()
    json_client.send(head("POST", CHAT, "content-length: 1000") + b'{"model": ')
    half = form(field("model", b"m"), field("file", bytes(5_000_000)))[:3_000_000]
    length = "content-length: 6000000"
    form_client.send(head("POST", TRANSCRIBE, length, f"content-type: {CONTENT_TYPE}") + half)
    await form_client.flush()
    await eventually(lambda: running.begun == 2, "both uploads have begun")
    json_client.leave()
    form_client.leave()
    await eventually(lambda: running.ended == 2, "both are counted")
    assert running.endings("") == {("cancelled", 499): 2}
    assert replica.calls == []


@pytest.mark.parametrize("kind", ["a prompt", "a form"])
async def test_a_client_with_a_long_body_that_leaves_aborts_its_request(
    backend: MakeBackend, gateway: MakeGateway, socket_dir: Path, kind: str
) -> None:
    replica = await backend(hang)
    running = await gateway([replica])
    path = str(socket_dir / "gateway.sock")
    await running.server.listen(unix_socket(path))
    # Over a Unix socket the rest of the body arrives at one go.
    client = RawClient(*await asyncio.open_unix_connection(path))
    if kind == "a prompt":
        body = json.dumps({"model": "m", "prompt": "x" * 100_000}).encode()
        opening = head("POST", CHAT, f"content-length: {len(body)}")
    else:
        body = form(field("model", b"m"), field("file", bytes(100_000)))
        lines = (f"content-length: {len(body)}", f"content-type: {CONTENT_TYPE}")
        opening = head("POST", TRANSCRIBE, *lines)
    client.send(opening + body[:1000])
    await eventually(lambda: running.begun == 1, "the application waits for the rest")
    client.send(body[1000:])
    call = await replica.call()
    client.close()
    try:
        await asyncio.wait_for(call.disconnected.wait(), 0.5)
    finally:
        await replica.kill()  # else nothing would end the request
        running.set_members([await backend()], epoch="2")


async def test_a_client_that_pipelined_and_leaves_aborts_the_request_under_way(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend(hang)
    running = await gateway([replica])
    client = await running.connect()
    client.post({"model": "m"})
    client.post({"model": "m"})
    call = await replica.call()
    client.leave()
    try:
        await asyncio.wait_for(call.disconnected.wait(), 0.5)
    finally:
        await replica.kill()
        running.set_members([await backend()], epoch="2")


async def test_a_client_that_leaves_while_a_replica_is_retried_is_gone(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await go.wait()
        peer.close()

    other = await backend()
    running = await gateway([await raw_backend(script), other])
    running.app.fleet.mark_down(running.replica(1))
    client = await running.connect()
    client.post({"model": "m"})
    await within(arrived.wait())
    running.set_members([a.endpoint.address for a in running.app.fleet.replicas("m")])
    client.leave()
    await running.until_ended("cancelled", 499)
    go.set()
    assert other.calls == []


async def test_a_client_that_leaves_after_its_answer_has_not_cancelled(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()])
    client = await running.connect()
    client.post({"model": "m"})
    await client.answer()
    client.leave()
    await eventually(lambda: not running.server.connections, "the connection is gone")
    assert running.endings() == {("completed", 200): 1}


async def test_one_client_that_leaves_disturbs_no_other(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        if b"leave" in call.body:
            return await call.until_disconnect()
        await release.wait()
        await echo(call)

    replica = await backend(handler)
    running = await gateway([replica])
    stay, leave = await running.connect(), await running.connect()
    stay.post({"model": "m"})
    await replica.call(0)
    leave.post({"model": "m", "x": "leave"})
    call = await replica.call(1)
    leave.leave()
    await within(call.disconnected.wait())
    release.set()
    assert (await stay.answer()).json() == {"model": "m"}


@pytest.mark.parametrize("held", [False, True], ids=["sent", "held"])
async def test_without_our_server_a_disconnect_is_seen_by_receive(
    backend: MakeBackend, gateway: MakeGateway, held: bool
) -> None:
    replica = await backend(hang)
    running = await gateway([] if held else [replica])
    left = asyncio.Event()
    body: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if body:
            return body.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": []}
    request = asyncio.create_task(running._app(scope, receive, send))
    if held:
        await running.until_held()
        left.set()
    else:
        call = await replica.call()
        left.set()
        await within(call.disconnected.wait())
    await within(request)
    assert sent == []
    await running.until_ended("cancelled", 499)
