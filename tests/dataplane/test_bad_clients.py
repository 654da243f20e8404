"""Clients that mean harm, or do it: bounded memory, clear errors, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibrix_ray.dataplane.channel import HIGH_WATER_BYTES
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, echo, event
from tests.dataplane.clients import CHAT, RawClient, head
from tests.dataplane.forms import CONTENT_TYPE, TRANSCRIBE, field
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.waiting import eventually, within

BODY = b'{"model": "m"}'


async def serves(running: Gateway) -> None:
    """Check that an ordinary client is served, and that nothing else is under way."""
    client = await running.connect()
    client.post(BODY)
    assert (await client.answer()).status == 200
    client.close()
    await running.until_idle()


# Readers


async def test_a_client_that_does_not_read_holds_a_bounded_part_of_its_stream(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    written = 0
    piece = event("x" * 64_000)

    async def handler(call: Call) -> None:
        nonlocal written
        if not call.json().get("stream"):
            return await echo(call)
        await call.begin(SSE)
        for _ in range(2_000):  # 128 MB
            await call.write(piece)
            written += len(piece)
        await call.end(DONE)

    running = await gateway([await backend(handler)])
    client = await running.connect(receive_buffer_bytes=4096)
    client.post({"model": "m", "stream": True})
    await client.head()
    stalled_at = await _standstill(lambda: written)
    (exchange,) = running.app.forwarder.under_way
    (connection,) = (c for c in running.server.connections if not c.idle)
    held = connection.transport.get_write_buffer_size()
    assert exchange.connection is not None
    held += exchange.connection._buffered
    assert held < 4 * HIGH_WATER_BYTES
    assert stalled_at < 16_000_000  # the rest waits in the engine, behind the kernel's buffers
    await serves_beside(running)
    client.leave()
    await running.until_idle()


async def _standstill(count: object) -> int:
    """Return the count once it has stood still."""
    assert callable(count)
    before = -1
    while before != count():
        before = count()
        await asyncio.sleep(0.25)
    return int(before)


async def serves_beside(running: Gateway) -> None:
    """Check that an ordinary client is served while another one misbehaves."""
    client = await running.connect()
    for _ in range(20):
        client.post(BODY)
        assert (await client.answer()).body == BODY
    client.close()


# Writers


async def test_a_client_that_writes_slowly_is_served_and_delays_nobody(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()])
    slow = await running.connect()
    data = head("POST", CHAT, f"content-length: {len(BODY)}") + BODY
    for i, byte in enumerate(data):
        slow.send(bytes([byte]))
        await slow.flush()
        if i % 40 == 0:
            await serves_beside(running)
    assert (await slow.answer()).body == BODY


async def test_many_clients_that_stall_are_told_so_and_leave_no_request(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()], args={"http": {"upload_timeout_s": 0.3}})
    stalls = [
        b"",
        b"PO",
        b"POST / HTTP/1.1\r\nx-a: b\r\n",
        head("POST", CHAT, "content-length: 100") + b"{",
        head("POST", CHAT, "transfer-encoding: chunked") + b"5\r\n{",
        head("POST", TRANSCRIBE, "content-length: 999", f"content-type: {CONTENT_TYPE}"),
    ]
    clients = [await running.connect() for _ in range(60)]
    for i, client in enumerate(clients):
        client.send(stalls[i % len(stalls)])
    await serves_beside(running)
    for i, client in enumerate(clients):
        if stalls[i % len(stalls)]:
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    await serves(running)


# Bodies


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_100_mb_is_413_and_never_in_memory(
    backend: MakeBackend, gateway: MakeGateway, chunked: bool
) -> None:
    replica = await backend()
    running = await gateway([replica], args={"max_body_bytes": 1_000_000})
    client = await running.connect()
    piece = bytes(500_000)
    framing = "transfer-encoding: chunked" if chunked else "content-length: 100000000"
    client.send(head("POST", CHAT, framing))
    tracemalloc.start()
    try:
        for _ in range(200):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await client.flush()
        if chunked:
            client.send(b"0\r\n\r\n")
        answer = await client.answer()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert peak < 20_000_000
    assert replica.calls == []
    await serves(running)


DEEP = {
    "arrays": b'{"model": "m", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "objects": b'{"model": "m", "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "open arrays": b"[" * 500_000,
    "in the model": b'{"model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP)
async def test_deep_json_is_400(backend: MakeBackend, gateway: MakeGateway, body: bytes) -> None:
    replica = await backend()
    running = await gateway([replica])
    client = await running.connect()
    client.post(body)
    answer = await client.answer()
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert replica.calls == []
    await serves(running)


# Framing

SMUGGLED = {
    "two lengths": ["content-length: 14", "content-length: 0"],
    "a list of lengths": ["content-length: 14, 0"],
    "length and chunks": ["content-length: 14", "transfer-encoding: chunked"],
    "chunks and length": ["transfer-encoding: chunked", "content-length: 14"],
    "not chunked last": ["transfer-encoding: chunked, identity"],
    "chunked twice": ["transfer-encoding: chunked", "transfer-encoding: identity"],
    "an unknown coding": ["transfer-encoding: xchunked"],
    "a hidden coding": ["transfer-encoding: \x0bchunked"],
    "a folded header": ["x: a", " transfer-encoding: chunked"],
    "a blank before the colon": ["content-length : 14"],
    "a signed length": ["content-length: +14"],
    "a hexadecimal length": ["content-length: 0xe"],
    "a huge length": ["content-length: 99999999999999999999999"],
}


@pytest.mark.parametrize("lines", SMUGGLED.values(), ids=SMUGGLED)
async def test_a_body_with_two_meanings_is_refused(
    backend: MakeBackend, gateway: MakeGateway, lines: list[str]
) -> None:
    replica = await backend()
    running = await gateway([replica])
    client = await running.connect()
    client.send(head("POST", CHAT, *lines) + BODY + head("GET", "/healthz"))
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (400, "invalid_http")
    assert await client.rest() == b""
    assert replica.calls == []
    await serves(running)


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\nhost: a\ncontent-length: 0\n\n",
        b"GET / HTTP/1.1\r\nhost: a\n\r\n",
        head("POST", CHAT, "transfer-encoding: chunked") + b"2\r\n{}XX0\r\n\r\n",
        head("POST", CHAT, "transfer-encoding: chunked") + b"-1\r\n{}\r\n",
        head("POST", CHAT, "transfer-encoding: chunked") + b"fffffffffffffffff\r\n",
    ],
)
async def test_sloppy_framing_is_refused(gateway: MakeGateway, data: bytes) -> None:
    running = await gateway()
    client = await running.connect()
    client.send(data)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (400, "invalid_http")
    await running.until_idle()


async def test_no_trailer_becomes_a_header_of_the_forwarded_request(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    trailer = b"x-priority: 0\r\nx-request-id: forged\r\n"
    client.send(head("POST", CHAT, "transfer-encoding: chunked"))
    client.send(b"e\r\n" + BODY + b"\r\n0\r\n" + trailer + b"\r\n")
    assert (await client.answer()).status == 200
    assert replica.calls[0].header(b"x-priority") is None
    assert replica.calls[0].header(b"x-request-id") != b"forged"


# Connections


@pytest.mark.parametrize(
    "count", [500, pytest.param(10_000, marks=pytest.mark.slow)], ids=["500", "10000"]
)
async def test_a_flood_of_idle_connections_delays_nobody(
    backend: MakeBackend, gateway: MakeGateway, count: int
) -> None:
    # Both ends are in this process, and half of its files are for clients.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    possible = count if limit == resource.RLIM_INFINITY else min(count, (limit - 600) // 2)
    running = await gateway([await backend()])
    flood = [_connected(running.port) for _ in range(10)]
    try:
        while len(flood) < possible:
            flood += [_connected(running.port) for _ in range(min(100, possible - len(flood)))]
            await eventually(_accepted(running, len(flood) - 10), "they are accepted")
            if len(flood) % 1000 < 100:
                await serves_beside(running)
        await serves_beside(running)
        running.server._shared.sweep(asyncio.get_running_loop().time())
    finally:
        for sock in flood:
            sock.close()
    await serves(running)


def _accepted(running: Gateway, count: int) -> Callable[[], bool]:
    return lambda: len(running.server.connections) >= count


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


async def test_more_connections_than_allowed_are_answered_and_never_stall_the_others(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()], args={"http": {"max_connections": 20}})
    first = await running.connect()
    first.post(BODY)
    assert (await first.answer()).status == 200
    flood = [await running.connect() for _ in range(60)]
    refused = 0
    for client in flood:
        client.post(BODY)
        refused += (await client.answer()).status == 503
    assert refused == 41
    first.post(BODY)
    assert (await first.answer()).status == 200
    assert running.server.refusals["too_many_connections"] == 41
    for client in flood:
        client.close()
    await eventually(lambda: len(running.server.connections) == 1, "they have gone")
    await serves(running)


REQUEST = head("POST", CHAT, f"content-length: {len(BODY)}") + BODY
STREAM = b'{"model": "m", "stream": true}'
STREAMED = head("POST", CHAT, f"content-length: {len(STREAM)}") + STREAM


@pytest.mark.parametrize("how", ["close", "leave"])
@pytest.mark.parametrize("request_bytes", [REQUEST, STREAMED], ids=["plain", "stream"])
async def test_a_client_that_leaves_at_any_byte_of_its_request_leaves_nothing_behind(
    backend: MakeBackend, gateway: MakeGateway, request_bytes: bytes, how: str
) -> None:
    async def handler(call: Call) -> None:
        if call.body == STREAM:
            await call.begin(SSE)
            await call.end(event("a") + DONE)
        else:
            await echo(call)

    running = await gateway([await backend(handler)])
    for end in range(0, len(request_bytes) + 1, 3):
        client = await running.connect()
        client.send(request_bytes[:end])
        await client.flush()
        getattr(client, how)()
    await eventually(lambda: not running.server.connections, "they have gone")
    await serves(running)


@pytest.mark.parametrize("how", ["close", "leave"])
async def test_a_client_that_leaves_at_any_stage_of_its_answer_leaves_nothing_behind(
    backend: MakeBackend, gateway: MakeGateway, how: str
) -> None:
    steps = [asyncio.Semaphore(0) for _ in range(5)]
    waiting = iter(steps)

    async def handler(call: Call) -> None:
        if call.body == BODY:
            return await echo(call)
        step = next(waiting)
        await step.acquire()
        await call.begin(SSE)
        for _ in range(3):
            await call.write(event("a"))
            await step.acquire()
        await call.end(DONE)

    replica = await backend(handler)
    running = await gateway([replica])
    for stage, step in enumerate(steps):
        client = await running.connect()
        client.send(STREAMED)
        await replica.call(stage)
        for i in range(stage):
            step.release()
            if i == 0:
                await client.head()
            if i < 3:
                await client.chunk()
        getattr(client, how)()
        await running.until_idle()
    await eventually(lambda: not running.server.connections, "they have gone")
    assert len(running.app.forwarder.under_way) == 0
    await serves(running)


# Anything


@pytest.fixture
async def any_gateway(backend: MakeBackend, gateway: MakeGateway) -> AsyncIterator[Gateway]:
    """One gateway for many examples; it must end with nothing under way and no error logged."""
    running = await gateway([await backend()], args={"http": {"upload_timeout_s": 0.5}})
    yield running
    await serves(running)


async def _say(running: Gateway, data: bytes) -> bytes:
    """Send `data` and no more; return all that is answered until the gateway closes."""
    client = await RawClient.open(running.port)
    try:
        client.send(data)
        client.writer.write_eof()
        return await client.rest()
    finally:
        client.close()


def check_answers(data: bytes) -> None:
    """Check that each answer is HTTP, and none is a 500."""
    while data:
        top, _, rest = data.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 "), data
        status = int(top.split()[1])
        assert status < 500, data
        lengths = [
            int(line.split(b":")[1])
            for line in top.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ]
        data = rest[lengths[0] :] if lengths else b""


EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PIECES = st.sampled_from(
    [
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\n",
        b"GET /v1/models HTTP/1.1\r\n",
        b"content-length: 14\r\n",
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\n",
        b"connection: close\r\n",
        b"upgrade: h2c\r\nconnection: upgrade\r\n",
        b"\r\n",
        b"e\r\n" + BODY + b"\r\n",
        b"0\r\n\r\n",
        BODY,
        b"\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
)


@pytest.fixture
def loop_of_the_test() -> asyncio.AbstractEventLoop:
    return asyncio.get_event_loop()


@EXAMPLES
@given(data=st.one_of(st.binary(max_size=300), st.lists(PIECES, max_size=12).map(b"".join)))
async def test_no_bytes_make_it_fail_or_hang(any_gateway: Gateway, data: bytes) -> None:
    answer = await within(_say(any_gateway, data))
    check_answers(answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["model", "stream", "max_tokens", "user", "messages", "prompt", "input", "priority"]
    ),
    JSON,
)


@EXAMPLES
@given(
    body=st.one_of(
        st.binary(max_size=200),
        JSON.map(lambda value: json.dumps(value).encode()),
        FIELDS.map(lambda fields: json.dumps(fields).encode()),
        FIELDS.map(lambda fields: json.dumps({**fields, "model": "m"}).encode()),
    )
)
async def test_no_body_makes_it_fail_or_hang(any_gateway: Gateway, body: bytes) -> None:
    client = await RawClient.open(any_gateway.port)
    try:
        client.post(body)
        answer = await client.answer()
        assert answer.status in (200, 400, 404, 413, 422), answer
        if answer.status != 200:
            assert answer.error["message"]
    finally:
        client.close()


@EXAMPLES
@given(data=st.data())
async def test_no_form_makes_it_fail_or_hang(any_gateway: Gateway, data: st.DataObject) -> None:
    parts = st.lists(
        st.sampled_from([field("model", b"m"), field("file", b"\x00" * 50), b"--x--\r\n", b"--x"])
        | st.binary(max_size=40),
        max_size=5,
    )
    client = await RawClient.open(any_gateway.port)
    try:
        client.post(b"".join(data.draw(parts)), TRANSCRIBE, f"content-type: {CONTENT_TYPE}")
        assert (await client.answer()).status in (200, 400, 404)
    finally:
        client.close()
