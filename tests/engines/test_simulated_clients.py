"""Clients that leave or read slowly, and an engine that ends before its answers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from aibrix_ray.asgi import Message, Scope
from aibrix_ray.engines.simulated import SimulatedEngine
from tests.engines.test_simulated_serving import (
    CHAT,
    COMPLETIONS,
    DEADLINE_S,
    Gate,
    chat_body,
    make_engine,
    parse_events,
    serving,
    text_of,
    until,
)


async def test_a_stream_whose_engine_stops_ends_with_an_error_and_no_finish() -> None:
    gate = Gate(steps=3)
    async with serving(sleep=gate) as served:
        body = chat_body(stream=True, ignore_eos=True)
        async with served.client.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200
            chunks = response.aiter_bytes()
            data = await anext(chunks)
            await served.engine.stop()
            data += b"".join([chunk async for chunk in chunks])
        *events, error = parse_events(data)
        assert {event["choices"][0]["finish_reason"] for event in events} == {None}
        assert error["error"]["code"] == "draining"


async def test_a_plain_answer_whose_engine_stops_is_an_error() -> None:
    gate = Gate(steps=1)
    async with serving(sleep=gate) as served:
        asking = asyncio.create_task(served.post(CHAT, chat_body()))
        await until(lambda: served.engine.stats().generation_tokens_total == 1)
        await served.engine.stop()
        response = await asking
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "draining"


# Clients that leave (U07), and clients that read slowly.


def raw_request(path: str, body: dict[str, Any]) -> bytes:
    data = msgspec.json.encode(body)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


@pytest.mark.parametrize(
    ("path", "body", "steps"),
    [
        (CHAT, chat_body(max_tokens=4000), 2),
        (CHAT, chat_body(max_tokens=4000, stream=True), 2),
        (CHAT, chat_body(max_tokens=4000, stream=True, n=3), 0),  # before the first token
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 4000}, 2),
        ("/v1/embeddings", {"input": "a"}, 0),
    ],
)
async def test_a_client_that_leaves_frees_the_engine_without_another_step(
    path: str, body: dict[str, Any], steps: int
) -> None:
    gate = Gate(steps=steps)
    async with serving(sleep=gate) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(raw_request(path, body))
        stats = served.engine.stats
        await until(
            lambda: stats().running > 0 and (stats().generation_tokens_total > 0) == (steps > 0)
        )
        if body.get("stream") and steps:
            await reader.readuntil(b"\n\n")
        writer.close()
        await until(lambda: stats().running + stats().waiting == 0)
        assert stats().kv_usage == 0.0
        made = stats().generation_tokens_total
        gate.allow(10)
        await served.engine.check_health()
        assert (await served.complete(max_tokens=1))["usage"]["completion_tokens"] == 1
        assert stats().generation_tokens_total == made + 1


def make_scope(path: str) -> Scope:
    return {"type": "http", "method": "POST", "path": path, "headers": []}


class Client:
    """One request through ASGI alone, on a server without the disconnect hook."""

    def __init__(self, engine: SimulatedEngine, path: str, body: dict[str, Any]) -> None:
        self.left = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.fails = False
        self.sent: list[Message] = []
        self._body = msgspec.json.encode(body)
        app = engine.openai_app()
        self.task = asyncio.ensure_future(app(make_scope(path), self.receive, self.send))

    async def receive(self) -> Message:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.may_send.wait()
        if self.fails:
            raise OSError("the client is gone")
        self.sent.append(message)

    @property
    def data(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


@pytest.mark.parametrize("stream", [False, True])
async def test_without_the_hook_a_task_waits_for_the_disconnect(stream: bool) -> None:
    engine = make_engine(sleep=Gate(steps=2))
    await engine.start()
    client = Client(engine, CHAT, chat_body(stream=stream, ignore_eos=True))
    await until(lambda: engine.stats().generation_tokens_total == 2)
    client.left.set()
    await asyncio.wait_for(client.task, DEADLINE_S)
    assert engine.stats().running == 0
    assert not any(message.get("more_body") is False for message in client.sent)
    await engine.stop()


async def test_a_failing_send_ends_the_generation() -> None:
    engine = make_engine(sleep=Gate(steps=2))
    await engine.start()
    client = Client(engine, CHAT, chat_body(stream=True, ignore_eos=True))
    client.fails = True
    await asyncio.wait_for(client.task, DEADLINE_S)
    assert engine.stats().running == 0
    await engine.stop()


async def test_a_cancelled_request_ends_its_generation() -> None:
    engine = make_engine(sleep=Gate(steps=2))
    await engine.start()
    client = Client(engine, CHAT, chat_body(ignore_eos=True))
    await until(lambda: engine.stats().generation_tokens_total == 2)
    client.task.cancel()
    await asyncio.wait([client.task])
    assert engine.stats().running == 0
    await engine.stop()


async def test_a_slow_client_holds_up_nobody_and_gets_its_tokens_in_few_chunks() -> None:
    engine = make_engine()
    await engine.start()
    fields = {"stream": True, "ignore_eos": True, "max_tokens": 500}
    fast, slow = (Client(engine, CHAT, chat_body(**fields)) for _ in range(2))
    slow.may_send.clear()
    await asyncio.wait_for(fast.task, DEADLINE_S)
    assert not slow.sent
    await until(lambda: engine.stats().running == 0)
    slow.may_send.set()
    await asyncio.wait_for(slow.task, DEADLINE_S)
    assert text_of(parse_events(slow.data)) == text_of(parse_events(fast.data))
    assert len(slow.sent) <= 4
    await engine.stop()


async def test_an_asgi_client_of_another_kind_is_served_too() -> None:
    engine = make_engine()
    await engine.start()
    transport = httpx.ASGITransport(app=engine.openai_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        response = await client.post(CHAT, json=chat_body(stream=True, max_tokens=3))
        assert len(parse_events(response.content)) >= 2
    await engine.stop()
