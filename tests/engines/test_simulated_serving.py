"""The simulated engine on a real socket; what the other tests of it serve by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import openai
import pytest

from aibrix_ray.asgi import AsgiApp, HttpServer, tcp_socket
from aibrix_ray.config import SimulatedEngineConfig
from aibrix_ray.engines.base import Engine, ReplicaIdentity
from aibrix_ray.engines.meta import REPLICA_LIMITS
from aibrix_ray.engines.simulated import SimulatedEngine

IDENTITY = ReplicaIdentity(replica_id="r1", group="g", model="tiny", epoch="e1")
DEADLINE_S = 20.0
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hello"}]


class Gate:
    """A `sleep` that lets the engine take as many steps as it was told to, and no more."""

    def __init__(self, steps: int = 0) -> None:
        self._permits = asyncio.Semaphore(steps)

    async def __call__(self, seconds: float) -> None:
        await self._permits.acquire()

    def allow(self, steps: int) -> None:
        for _ in range(steps):
            self._permits.release()


async def at_once(seconds: float) -> None:
    """A `sleep` that takes one turn of the loop."""
    await asyncio.sleep(0)


def make_engine(
    *,
    sleep: Callable[[float], Any] = at_once,
    clock: Callable[[], float] | None = None,
    identity: ReplicaIdentity = IDENTITY,
    **config: Any,
) -> SimulatedEngine:
    settings = SimulatedEngineConfig(**{"profile": "instant", **config})
    return SimulatedEngine(identity, settings, clock=clock, sleep=sleep)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; fails at a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)


@dataclass
class Served:
    """An engine behind a socket, and a client of it."""

    engine: SimulatedEngine
    client: httpx.AsyncClient
    port: int

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers)

    async def complete(self, prompt: Any = "hello", **fields: Any) -> dict[str, Any]:
        response = await self.post(COMPLETIONS, {"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def chat(self, content: Any = "hello", **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        response = await self.post(CHAT, {"messages": messages, **fields})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a stream, which must be well-formed and end with [DONE]."""
        response = await self.post(path, {"stream": True, **body})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_events(response.content)

    async def chat_events(self, content: str = "hello", **fields: Any) -> list[dict[str, Any]]:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return await self.events(CHAT, body)


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"messages": USER, **fields}


def parse_events(data: bytes) -> list[dict[str, Any]]:
    *events, done, rest = data.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: ") for event in events)
    return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events]


def text_of(events: list[dict[str, Any]], choice: int = 0) -> str:
    parts = [c for event in events for c in event.get("choices", ()) if c["index"] == choice]
    return "".join(part["delta"]["content"] if "delta" in part else part["text"] for part in parts)


@asynccontextmanager
async def serving(
    *, wrap: Callable[[AsgiApp], AsgiApp] = lambda app: app, **config: Any
) -> AsyncIterator[Served]:
    engine = make_engine(**config)
    await engine.start()
    server = HttpServer(wrap(engine.openai_app()), keep_alive_s=5, limits=REPLICA_LIMITS)
    sock = tcp_socket("127.0.0.1", 0)
    port = sock.getsockname()[1]
    await server.listen(sock)
    base = f"http://127.0.0.1:{port}"
    try:
        # Without certificates to load, which takes longer than a test.
        async with httpx.AsyncClient(
            base_url=base, timeout=DEADLINE_S, verify=False, trust_env=False
        ) as client:
            yield Served(engine, client, port)
    finally:
        await server.close()
        await engine.stop()


def test_the_engine_has_the_shape_that_replicas_expect() -> None:
    engine: Engine = make_engine()
    assert callable(engine.openai_app())


async def test_the_served_model_is_listed_under_its_name() -> None:
    async with serving(max_model_len=777) as served:
        response = await served.client.get("/v1/models")
        assert response.status_code == 200
        assert response.json()["object"] == "list"
        (card,) = response.json()["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("tiny", "model", 777)


async def test_health_is_that_of_the_stepping_task() -> None:
    async with serving() as served:
        assert (await served.client.get("/health")).status_code == 200
        await served.engine.stop()
        assert (await served.client.get("/health")).status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_served_is_answered_in_the_api_s_shape(
    method: str, path: str, status: int, code: str
) -> None:
    async with serving() as served:
        response = await served.client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["code"] == code


async def test_the_official_client_understands_every_answer() -> None:
    async with (
        serving() as served,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        plain = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
            logprobs=True,
            top_logprobs=2,
        )
        assert plain.usage is not None
        assert plain.choices[0].logprobs is not None
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert said == plain.choices[0].message.content
        assert chunks[-1].usage == plain.usage
        completion = await client.completions.create(
            model="tiny", prompt="hello", max_tokens=3, logprobs=1
        )
        assert completion.choices[0].text
        vector = (await client.embeddings.create(model="tiny", input="a")).data[0].embedding
        assert len(vector) == 64
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="hello")
        with pytest.raises(openai.BadRequestError, match="maximum context length is 4096"):
            await client.completions.create(model="tiny", prompt="hello", max_tokens=999_999)
