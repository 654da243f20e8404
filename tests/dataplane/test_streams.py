"""Event streams through the gateway: at once, whole events, and honest when a replica dies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.dataplane.backends import (
    DONE,
    JSON,
    SSE,
    Call,
    MakeBackend,
    MakeRawBackend,
    Peer,
    chunk,
    event,
)
from tests.dataplane.clients import Answer, RawClient
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.waiting import eventually

ASK = {"model": "m", "stream": True}
META = b': aibrix {"usage":[7,2,5]}\n\n'


async def ask(gateway: Gateway) -> RawClient:
    client = await gateway.connect()
    client.post(ASK)
    return client


def assert_ends_with_one_error(body: bytes, *, before: bytes, status: int = 502) -> None:
    """Check U08: what came, then one error frame, then [DONE]; no fabricated finish."""
    assert body.startswith(before)
    frames = body[len(before) :].split(b"\n\n")
    assert len(frames) == 3
    assert frames[1:] == [b"data: [DONE]", b""]
    error = json.loads(frames[0].removeprefix(b"data: "))["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    code = {502: "replica_failed", 504: "deadline_exceeded"}[status]
    assert error["code"] == code
    assert error["message"]
    assert b"finish_reason" not in frames[0]


# At once, and whole


async def test_the_first_event_is_delivered_while_the_replica_holds_the_second_back(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("first"))
        await release.wait()
        await call.write(event("second"))
        await call.end(DONE)

    client = await ask(await gateway([await backend(handler)]))
    head = await client.head()
    assert (head.status, head.header("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert await client.chunk() == event("first")
    release.set()
    rest = b""
    while data := await client.chunk():
        rest += data
    assert rest == event("second") + DONE


async def test_coalesced_events_pass_unchanged(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    events = [event(str(i)) for i in range(50)] + [DONE]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.begin_stream()
        await peer.write(b"".join(map(chunk, events)) + b"0\r\n\r\n")

    running = await gateway([await raw_backend(script)])
    client = await ask(running)
    assert (await client.answer()).body == b"".join(events)
    await running.until_ended("completed", 200)


async def test_an_event_split_over_packets_is_delivered_whole(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    first, second = event("first"), event("second")
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.begin_stream()
        await peer.chunk(first + second[:9])
        await release.wait()
        for i in range(9, len(second)):
            await peer.chunk(second[i : i + 1])
        await peer.chunk(DONE)
        await peer.end_stream()

    client = await ask(await gateway([await raw_backend(script)]))
    await client.head()
    assert await client.chunk() == first
    release.set()
    assert (await client.chunk()).startswith(second)


async def test_crlf_events_are_delivered_at_once(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()
    crlf = b"event: token\r\ndata: {}\r\n\r\n"

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.begin_stream()
        await peer.chunk(crlf)
        await release.wait()
        await peer.chunk(b"data: [DONE]\r\n\r\n")
        await peer.end_stream()

    client = await ask(await gateway([await raw_backend(script)]))
    await client.head()
    assert await client.chunk() == crlf
    release.set()
    assert await client.chunk() == b"data: [DONE]\r\n\r\n"
    assert await client.chunk() == b""


async def test_the_usage_is_counted_and_never_seen_wherever_packets_split(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    data = event("a") + META + DONE
    cuts = iter(range(0, len(data), 3))

    async def script(peer: Peer) -> None:
        for cut in cuts:
            await peer.request()
            await peer.begin_stream()
            for piece in filter(None, (data[:cut], data[cut:])):
                await peer.chunk(piece)
            await peer.end_stream()

    running = await gateway([await raw_backend(script)])
    client = await running.connect()
    count = len(range(0, len(data), 3))
    for _ in range(count):
        client.post(ASK)
        assert (await client.answer()).body == event("a") + DONE
    tokens = {
        labels[0][1]: value
        for (name, labels), value in (await running.samples()).items()
        if name == "aibrix_ray_tokens_total" and ("model", "m") in labels
    }
    assert tokens == {
        "prompt": 7 * count,
        "cached_prompt": 2 * count,
        "generation": 5 * count,
    }


async def test_the_usage_of_a_plain_answer_is_counted_and_never_seen(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.answer(headers=[JSON, (b"x-aibrix-meta", b'{"usage":[7,2,5]}')])

    running = await gateway([await backend(handler)])
    client = await running.connect()
    client.post({"model": "m"})
    assert (await client.answer()).header("x-aibrix-meta") is None
    await running.until_idle()
    assert running.app.metrics.of("m").tokens == [7, 2, 5]


@pytest.mark.parametrize(
    "events",
    [
        [],
        [event("a")],
        [event("a"), b"data: no end of line"],
        [b": comment\n\n", b"event: ping\nid: 1\ndata:\n\n", DONE],
    ],
    ids=["empty", "without DONE", "cut short", "not OpenAI's"],
)
async def test_a_stream_that_ends_regularly_is_passed_as_it_is(
    backend: MakeBackend, gateway: MakeGateway, events: list[bytes]
) -> None:
    async def handler(call: Call) -> None:
        await call.begin(SSE)
        for each in events:
            await call.write(each)
        await call.end()

    running = await gateway([await backend(handler)])
    assert (await (await ask(running)).answer()).body == b"".join(events)
    await running.until_ended("completed", 200)


async def test_chunked_answers_that_are_no_event_streams_pass(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.begin((b"content-type", b"application/x-ndjson"))
        for i in range(3):
            await call.write(b'{"i": %d}\n' % i)
        await call.end()

    running = await gateway([await backend(handler)])
    answer = await (await ask(running)).answer()
    assert answer.body == b'{"i": 0}\n{"i": 1}\n{"i": 2}\n'
    assert answer.header("content-type") == "application/x-ndjson"


# Errors that are known before the first byte keep their status (U10)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({**ASK, "model": "none"}, 404, "model_not_found"),
        ({**ASK, "model": 7}, 400, "invalid_request"),
        (ASK, 503, "no_ready_replica"),
    ],
)
async def test_a_stream_refused_before_its_first_byte_is_json_with_its_real_status(
    gateway: MakeGateway, body: dict[str, Any], status: int, code: str
) -> None:
    client = await (await gateway(wait_for_replica_s=0)).connect()
    client.post(body)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (status, code)


async def test_an_engines_refusal_of_a_stream_keeps_status_and_body(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    refusal = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'

    async def handler(call: Call) -> None:
        await call.answer(refusal, status=400, headers=[JSON])

    answer = await (await ask(await gateway([await backend(handler)]))).answer()
    assert (answer.status, answer.body) == (400, refusal)
    assert answer.header("content-type") == "application/json"


# A replica that dies amid its stream (U08)


async def stream_then(peer: Peer, *chunks: bytes) -> None:
    await peer.request()
    await peer.begin_stream()
    for each in chunks:
        await peer.chunk(each)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize(
    "partial",
    [b"", b"d", event("lost")[:-1], event("lost")[:12], META[:20], b": aibrix", b"data: [DONE]\n"],
)
async def test_a_replica_that_dies_amid_its_stream_ends_it_with_one_error(
    raw_backend: MakeRawBackend, gateway: MakeGateway, partial: bytes, tcp: bool
) -> None:
    client_has_it = asyncio.Event()

    async def script(peer: Peer) -> None:
        await stream_then(peer, event("a"), event("b") + partial)
        await client_has_it.wait()
        peer.reset()

    other = await raw_backend(script)
    running = await gateway([await raw_backend(script, tcp=tcp), other])
    running.app.fleet.mark_down(running.replica(1))
    client = await ask(running)
    await client.head()
    body = await client.chunk()
    while body != event("a") + event("b"):
        body += await client.chunk()
    client_has_it.set()
    while data := await client.chunk():
        body += data
    assert_ends_with_one_error(body, before=event("a") + event("b"))
    await running.until_ended("failed", 502)
    samples = await running.samples()
    labels = (("ending", "failed"), ("model", "m"), ("status", "502"))
    assert samples[("aibrix_ray_requests_total", labels)] == 1
    assert other.connections == 0
    client.get("/healthz")  # the broken stream was a well-formed answer
    assert (await client.answer()).status == 200


async def test_a_killed_replica_breaks_only_its_own_streams(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    go = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("a"))
        await go.wait()
        await call.end(DONE)

    victim, survivor = await backend(handler), await backend(handler)
    running = await gateway([victim, survivor])
    clients = [await ask(running) for _ in range(6)]
    heads = [await client.head() for client in clients]
    for client in clients:
        assert await client.chunk() == event("a")
    await victim.kill()
    go.set()
    for head, client in zip(heads, clients, strict=True):
        rest = b""
        while data := await client.chunk():
            rest += data
        if head.header("target-replica") == "m-0":
            assert_ends_with_one_error(rest, before=b"")
        else:
            assert rest == DONE
    await running.until_idle()
    assert running.endings() == {("failed", 502): 3, ("completed", 200): 3}


async def test_a_stream_that_was_complete_when_its_replica_died_is_complete(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await stream_then(peer, event("a") + DONE)
        peer.reset()

    running = await gateway([await raw_backend(script)])
    assert (await (await ask(running)).answer()).body == event("a") + DONE


async def test_a_stream_that_was_complete_when_its_replica_died_is_counted_as_complete(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await stream_then(peer, event("a") + DONE)
        peer.reset()

    running = await gateway([await raw_backend(script)])
    await (await ask(running)).answer()
    await running.until_idle()
    await eventually(lambda: running.ended == 1, "the request is counted")
    assert running.endings() == {("completed", 200): 1}


async def test_garbage_amid_a_stream_ends_it_with_one_error(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await stream_then(peer, event("a"))
        await peer.write(b"not a chunk\r\n")

    running = await gateway([await raw_backend(script)])
    body = (await (await ask(running)).answer()).body
    assert_ends_with_one_error(body, before=event("a"))
    await running.until_ended("failed", 502)


async def test_a_stream_with_a_length_that_breaks_ends_with_one_error_too(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 1000\r\n\r\n"
            + event("a")
        )
        peer.close()

    running = await gateway([await raw_backend(script)])
    running.tolerate("")
    answer: Answer = await (await ask(running)).answer()
    assert_ends_with_one_error(answer.body, before=event("a"))


async def test_a_large_plain_answer_that_breaks_midway_breaks_the_clients_connection(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + bytes(1_000_000))
        peer.close()

    running = await gateway([await raw_backend(script), await raw_backend(script)])
    running.tolerate("ASGI callable returned without completing response")
    client = await ask(running)
    head = await client.head()
    assert head.header("content-length") == "9000000"
    assert len(await client.rest()) < 9_000_000
    await running.until_ended("failed", 502)


async def test_a_large_chunked_answer_that_breaks_midway_has_no_regular_end(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await peer.chunk(bytes(1_000_000))
        peer.close()

    running = await gateway([await raw_backend(script)])
    running.tolerate("ASGI callable returned without completing response")
    client = await ask(running)
    assert (await client.head()).chunked
    assert not (await client.rest()).endswith(b"0\r\n\r\n")
    await running.until_ended("failed", 502)
