"""Which headers pass the gateway, in which direction."""

from __future__ import annotations

import re

import pytest

from aibrix_ray.dataplane import Address
from tests.dataplane.backends import (
    DONE,
    SSE,
    Call,
    MakeBackend,
    MakeRawBackend,
    Peer,
    event,
)
from tests.dataplane.clients import Answer
from tests.dataplane.gateways import Gateway, MakeGateway


async def ask(gateway: Gateway, *lines: str) -> Answer:
    client = await gateway.connect()
    client.post({"model": "m"}, "/v1/chat/completions", *lines)
    return await client.answer()


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "cookie",
        "X-Api-Key",
        "Proxy-Authorization",
        "x-aibrix-token",
        "X-Aibrix-Meta",
        "X-AIBRIX-anything",
        "x-aibrix-retry",
    ],
)
async def test_neither_credentials_nor_private_headers_of_a_client_reach_a_replica(
    backend: MakeBackend, gateway: MakeGateway, name: str
) -> None:
    replica = await backend()
    answer = await ask(await gateway([replica]), f"{name}: smuggled")
    assert answer.status == 200
    assert all(b"smuggled" not in value for _, value in replica.calls[0].headers)


@pytest.mark.parametrize(
    "line",
    [
        "keep-alive: timeout=5",
        "te: trailers",
        "trailer: expires",
        "proxy-connection: keep-alive",
        "upgrade: h2c",
        "connection: keep-alive",
        "accept-encoding: gzip",
    ],
)
async def test_hop_by_hop_headers_of_a_client_end_at_the_gateway(
    backend: MakeBackend, gateway: MakeGateway, line: str
) -> None:
    replica = await backend()
    assert (await ask(await gateway([replica]), line)).status == 200
    assert replica.calls[0].header(line.partition(":")[0].encode()) is None


async def test_other_headers_of_a_client_pass_in_order_and_with_repetitions(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    lines = [
        "X-Vendor: a",
        "traceparent: 00-1-2-01",
        "accept: text/plain",
        "x-vendor: b,  c",
    ]
    await ask(await gateway([replica]), *lines, "content-type: application/json")
    passed = [(k, v) for k, v in replica.calls[0].headers if k in VENDOR]
    assert passed == [
        (b"x-vendor", b"a"),
        (b"traceparent", b"00-1-2-01"),
        (b"accept", b"text/plain"),
        (b"x-vendor", b"b,  c"),
        (b"content-type", b"application/json"),
    ]


VENDOR = {b"x-vendor", b"traceparent", b"accept", b"content-type"}


async def test_a_replica_is_asked_for_its_usage_and_sees_one_host_and_length(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    await ask(await gateway([replica]))
    headers = replica.calls[0].headers
    names = [name for name, _ in headers]
    assert len(names) == len(set(names))
    assert dict(headers) | {b"x-request-id": b""} == {
        b"host": b"replica",
        b"content-length": b"14",
        b"x-aibrix-meta": b"1",
        b"x-request-id": b"",
    }


async def test_a_replica_on_tcp_is_given_its_token_and_the_client_never_sees_it(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend(tcp=True, token="s3cret")
    address = replica.address
    right = Address(host=address.host, port=address.port, token="s3cret")
    answer = await ask(await gateway([right]), "x-aibrix-token: guess")
    assert answer.status == 200
    assert "s3cret" not in str(answer.headers)
    assert replica.calls[0].header(b"x-aibrix-token") == b"s3cret"
    assert (await ask(await gateway([address]))).status == 401


async def test_hop_by_hop_and_private_headers_of_a_replica_never_reach_the_client(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(
            b"{}",
            b"Connection: keep-alive",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"Trailer: expires",
            b"X-Aibrix-Meta: {}",
            b"x-aibrix-anything: 1",
            b"X-Vendor: a",
            b"X-Vendor: b",
            b"Server: engine",
        )

    answer = await ask(await gateway([await raw_backend(script)]))
    names = [name for name, _ in answer.headers]
    assert not [name for name in names if name.startswith("x-aibrix-")]
    assert not {"connection", "keep-alive", "proxy-connection", "trailer"} & set(names)
    assert answer.all("x-vendor") == ["a", "b"]
    assert answer.header("server") == "engine"


async def test_private_headers_do_not_leak_on_a_stream(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.begin(SSE, (b"x-aibrix-epoch", b"1"), (b"x-vendor", b"a"))
        await call.end(event("a") + DONE)

    answer = await ask(await gateway([await backend(handler)]))
    assert answer.header("x-vendor") == "a"
    assert not [name for name, _ in answer.headers if name.startswith("x-aibrix-")]


@pytest.mark.parametrize("request_id", ["a", "req_0123-456:/?#[]@!$&'()*+,;=~", "x" * 128])
async def test_a_request_id_comes_back_and_reaches_the_replica(
    backend: MakeBackend, gateway: MakeGateway, request_id: str
) -> None:
    replica = await backend()
    answer = await ask(await gateway([replica]), f"X-Request-Id: {request_id}")
    assert answer.all("x-request-id") == answer.all("request-id") == [request_id]
    assert replica.calls[0].header(b"x-request-id") == request_id.encode()


@pytest.mark.parametrize("request_id", ["", "with space", "x" * 129, "é"])
async def test_an_unfit_request_id_is_replaced(
    backend: MakeBackend, gateway: MakeGateway, request_id: str
) -> None:
    replica = await backend()
    answer = await ask(await gateway([replica]), f"x-request-id: {request_id}")
    new = answer.header("x-request-id")
    assert new is not None
    assert re.fullmatch("[0-9a-f]{24}", new)
    assert [v for k, v in replica.calls[0].headers if k == b"x-request-id"] == [new.encode()]


async def test_new_request_ids_differ(backend: MakeBackend, gateway: MakeGateway) -> None:
    running = await gateway([await backend()])
    ids = [(await ask(running)).header("x-request-id") for _ in range(20)]
    assert len(set(ids)) == 20


async def test_a_refused_request_has_its_id_too(gateway: MakeGateway) -> None:
    client = await (await gateway()).connect()
    client.post(b"not json", "/v1/completions", "x-request-id: mine")
    answer = await client.answer()
    assert (answer.status, answer.all("x-request-id")) == (400, ["mine"])
    assert answer.all("request-id") == ["mine"]


async def test_a_replica_that_names_the_request_does_not_double_the_header(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        names = (b"x-request-id", b"request-id", b"target-replica")
        await call.answer(headers=[(name, b"engine's own") for name in names])

    answer = await ask(await gateway([await backend(handler)]), "x-request-id: mine")
    assert answer.all("x-request-id") == answer.all("request-id") == ["mine"]
    assert answer.all("target-replica") == ["m-0"]


async def test_headers_that_connection_names_end_at_the_gateway(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    await ask(await gateway([replica]), "connection: keep-alive, X-Hop", "x-hop: 1")
    assert replica.calls[0].header(b"x-hop") is None


async def test_the_answer_names_the_replica_that_gave_it(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(), await backend(tcp=True)])
    named = [(await ask(running)).header("target-replica") for _ in range(4)]
    assert sorted(filter(None, named)) == ["m-0", "m-0", "m-1", "m-1"]


async def test_after_a_retry_the_answer_names_the_second_replica(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    dead = await backend()
    running = await gateway([dead, await backend()])
    await dead.kill()
    assert {(await ask(running)).header("target-replica") for _ in range(4)} == {"m-1"}


def test_an_address_prints_without_its_token() -> None:
    assert str(Address(host="10.0.0.1", port=80, token="s3cret")) == "10.0.0.1:80"
    assert str(Address(uds="/run/x.sock", token="s3cret")) == "/run/x.sock"
