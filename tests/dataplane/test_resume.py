"""A stream whose replica dies goes on at another one, where its token ids were told.

With scripted replicas, which show each rule alone, and with simulated engines, whose text says
whether the client has one whole answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aibrix_ray.asgi import HttpServer, Message, Receive, Scope, Send, unix_socket
from aibrix_ray.dataplane import FORWARDED_PATHS
from aibrix_ray.dataplane.channel import Address
from aibrix_ray.dataplane.sse import EventStream
from aibrix_ray.engines.base import ReplicaIdentity
from aibrix_ray.engines.meta import REPLICA_LIMITS, ReplicaApp
from aibrix_ray.pipeline import MAX_BREAKS
from aibrix_ray.types import Usage
from tests.dataplane.backends import DONE, SSE, Backend, Call, MakeBackend
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.engines.test_simulated_serving import make_engine

BODY = {"model": "m", "prompt": "a", "max_tokens": 40, "stream": True}
COMPLETIONS = "/v1/completions"
IDENTITY = ReplicaIdentity(replica_id="m-0", group="m", model="m", epoch="")


def event(text: str, created: int = 1) -> bytes:
    return b'data: {"created":%d,"text":"%b"}\n\n' % (created, text.encode())


def text_of(stream: bytes) -> str:
    events = [line[6:] for line in stream.splitlines() if line.startswith(b"data: {")]
    return "".join(json.loads(line).get("text", "") for line in events)


class Dying:
    """Sends messages, then its connection breaks."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = messages
        self.backend: Backend | None = None

    async def __call__(self, call: Call) -> None:
        await call.begin(SSE)
        for message in self.messages:
            await call.write(message)
        assert self.backend is not None
        death = asyncio.create_task(self.backend.kill())
        await call.until_disconnect()
        await death


class Continuing:
    """Answers a resumed request with what is given, and keeps what it was asked."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = messages
        self.asked: list[tuple[bytes | None, bytes | None]] = []

    async def __call__(self, call: Call) -> None:
        self.asked.append((call.header(b"x-aibrix-resume"), call.header(b"x-aibrix-cached")))
        await call.begin(SSE)
        for message in self.messages:
            await call.write(message)
        await call.end()


async def two(
    backend: MakeBackend, gateway: MakeGateway, first: Dying, second: Any, **model: Any
) -> Gateway:
    """Return a gateway whose first choice is `first`."""
    first.backend = await backend(first)
    return await gateway([first.backend, await backend(second)], **model)


async def test_it_goes_on_from_the_ids_of_whole_events(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    first = Dying(b":=3,2\n:+11\n" + event("a", 5), b":+12,13\n" + event("bc", 5), b":+14\ndata: {")
    second = Continuing(
        b":=3,0\n:\n\n", b":+14\n" + event("d", 9), b':+15\n: aibrix {"usage":[3,2,5]}\n\n' + DONE
    )
    running = await two(backend, gateway, first, second)
    answer = await running.post(BODY, COMPLETIONS)
    assert answer.status_code == 200
    assert answer.content == event("a", 5) + event("bc", 5) + event("d", 5) + DONE
    assert second.asked == [(b"11,12,13", b"2")]
    assert running.endings() == {("completed", 200): 1}
    metrics = running.app.metrics.of("m")
    assert (metrics.resumed[0], metrics.broken[0]) == (1, 0)


async def test_the_usage_is_that_of_the_whole_answer(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    first = Dying(b":=3,2\n:+11\n" + event("a"))
    second = Continuing(
        b":=3,0\n:\n\n:+12\n" + event("b") + b': aibrix {"usage":[3,2,2]}\n\n' + DONE
    )
    running = await two(backend, gateway, first, second)
    assert text_of((await running.post(BODY, COMPLETIONS)).content) == "ab"
    samples = await running.samples()
    kinds = {
        dict(labels)["kind"]: value
        for (name, labels), value in samples.items()
        if name == "aibrix_ray_tokens_total" and dict(labels)["model"] == "m"
    }
    assert (kinds["prompt"], kinds["cached_prompt"], kinds["generation"]) == (3, 2, 2)


@pytest.mark.parametrize(
    ("messages", "model"),
    [
        pytest.param([event("a")], {}, id="no ids were told"),
        pytest.param([b":=3,2\n:+11\n" + event("a")], {"resume": False}, id="switched off"),
    ],
)
async def test_what_is_not_carried_ends_with_an_error(
    messages: Sequence[bytes], model: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    second = Continuing(DONE)
    running = await two(backend, gateway, Dying(*messages), second, **model)
    answer = await running.post(BODY, COMPLETIONS)
    assert b'"code":"replica_failed"' in answer.content
    assert answer.content.endswith(DONE)
    assert second.asked == []
    assert running.app.metrics.of("m").broken[0] == 1


async def test_a_refusal_to_continue_ends_with_an_error(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(b"no", status=409, headers=[(b"x-aibrix-resume", b"refused")])

    running = await two(backend, gateway, Dying(b":=3,2\n:+11\n" + event("a")), refuse)
    answer = await running.post(BODY, COMPLETIONS)
    assert answer.content.startswith(event("a"))
    assert b'"code":"replica_failed"' in answer.content
    assert answer.content.endswith(DONE)


class Mortals:
    """Replicas that die one after the other under one stream, until `last`.

    The first `progress` of them give one more token of it before.
    """

    def __init__(self, last: int, progress: int) -> None:
        self.last = last
        self.progress = progress
        self.calls = 0

    async def __call__(self, call: Call, backend: Backend) -> None:
        number = self.calls
        self.calls += 1
        begin = b":=1,0\n:\n\n" if number else b":=1,0\n"
        messages = [begin]
        if number < self.progress:
            messages.append(b":+%d\n" % number + event(str(number)))
        dying = Dying(*messages)
        dying.backend = backend
        await (dying if number < self.last else Continuing(*messages, DONE))(call)


async def mortals(
    last: int, backend: MakeBackend, gateway: MakeGateway, *, progress: int = 99, **model: Any
) -> tuple[Mortals, Gateway]:
    script = Mortals(last, progress)
    backends: list[Backend] = []
    for i in range(last + 1):

        async def handler(call: Call, index: int = i) -> None:
            await script(call, backends[index])

        backends.append(await backend(handler))
    return script, await gateway(backends, **model)


async def test_a_stream_outlives_more_replicas_than_there_are_attempts(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    _, running = await mortals(MAX_BREAKS, backend, gateway, max_attempts=1)
    answer = await running.post(BODY, COMPLETIONS)
    assert text_of(answer.content) == "012345"
    assert running.app.metrics.of("m").resumed[0] == MAX_BREAKS


async def test_a_request_that_kills_its_replicas_does_not_go_through_the_fleet(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    script, running = await mortals(MAX_BREAKS + 3, backend, gateway)
    answer = await running.post(BODY, COMPLETIONS)
    assert b'"code":"replica_failed"' in answer.content
    assert script.calls == MAX_BREAKS + 1


async def test_a_replica_that_makes_no_progress_costs_attempts(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    script, running = await mortals(5, backend, gateway, progress=1, max_attempts=2)
    answer = await running.post(BODY, COMPLETIONS)
    assert b'"code":"replica_failed"' in answer.content
    assert text_of(answer.content) == "0"
    assert script.calls == 3


@pytest.mark.parametrize(
    ("arrivals", "out"),
    [
        ([b":+1\ndata: a\n\n"], b"data: a\n\n"),
        ([b":=4,0\n:+1\ndata: a\n\n:+2\ndata: b\n\n"], b"data: a\n\ndata: b\n\n"),
        ([b":=4,0\n:+1\nda", b"ta: a\n", b"\n:+2\ndata: b\n\n"], b"data: a\n\ndata: b\n\n"),
        ([b": ping\n\n:=4,0\n:+1,2\ndata: :+1\\n\n\n"], b": ping\n\ndata: :+1\\n\n\n"),
    ],
)
def test_lines_are_cut_however_they_arrive(arrivals: Sequence[bytes], out: bytes) -> None:
    stream = EventStream()
    assert b"".join(map(stream.feed, arrivals)) == out


def test_a_cut_stream_is_charged_for_what_was_told() -> None:
    stream = EventStream()
    stream.feed(b":=4,1\n:+1,2\ndata: a\n\n")
    stream.feed(b":+3\ndata: b\n\n:+4\ndata: ")
    assert stream.spent() == Usage(4, 1, 3)


# With simulated engines.


class Engine:
    """A simulated engine on a socket, all of whose connections break in some streams.

    Each stream takes from `cuts` after how many messages; where there is none left, it is whole.
    """

    def __init__(self, folder: Path, name: str, cuts: list[int]) -> None:
        self._engine = make_engine(identity=IDENTITY)
        self._cuts = cuts
        self._path = str(folder / name)
        self._server = HttpServer(self._cut, keep_alive_s=60, limits=REPLICA_LIMITS)
        self.address = Address(uds=self._path)

    async def start(self) -> None:
        await self._engine.start()
        self._app = ReplicaApp(self._engine.openai_app(), paths=FORWARDED_PATHS)
        await self._server.listen(unix_socket(self._path))

    async def stop(self) -> None:
        await self._server.close()
        await self._engine.stop()

    async def _cut(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = 0
        cut = self._cuts.pop(0) if self._cuts else None

        async def counting(message: Message) -> None:
            nonlocal sent
            sent += message["type"] == "http.response.body"
            if cut is not None and sent > cut:
                for connection in list(self._server.connections):
                    connection.transport.abort()
                return
            await send(message)

        await self._app(scope, receive, counting)


MakeEngines = Callable[[Sequence[int]], Awaitable[list[Address]]]


@pytest.fixture
async def engines(socket_dir: Path) -> AsyncIterator[MakeEngines]:
    """Make engines whose first streams break after so many messages, and one more."""
    made: list[Engine] = []

    async def make(cuts: Sequence[int]) -> list[Address]:
        left, numbers = list(cuts), range(len(made), len(made) + len(cuts) + 1)
        fresh = [Engine(socket_dir, f"e{number}", left) for number in numbers]
        for each in fresh:
            await each.start()
        made.extend(fresh)
        return [each.address for each in fresh]

    yield make
    for each in made:
        await each.stop()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def comparable(stream: bytes) -> tuple[set[tuple[str, int]], str, list[str], Any]:
    """Return what a client makes of it: identities, text, finish reasons, usage."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line[:7] == b"data: {"]
    choices = [choice for each in events for choice in each["choices"]]
    text = "".join(c.get("text") or (c.get("delta") or {}).get("content") or "" for c in choices)
    reasons = [c["finish_reason"] for c in choices if c["finish_reason"]]
    usage = next((each["usage"] for each in events if each.get("usage")), None)
    return {(each["id"], each["created"]) for each in events}, text, reasons, usage


@pytest.mark.parametrize("path", ["/v1/chat/completions", COMPLETIONS])
@pytest.mark.parametrize("usage", [False, True])
async def test_wherever_it_is_cut_the_client_has_one_whole_answer(
    path: str, usage: bool, engines: MakeEngines, gateway: MakeGateway
) -> None:
    body: dict[str, Any] = chat() if "chat" in path else {"model": "m", "prompt": "hi"}
    body |= {"stream": True, "max_tokens": 12, "temperature": 0}
    if usage:
        body["stream_options"] = {"include_usage": True}
    whole = await gateway(await engines([]))
    wanted = comparable((await whole.post(body, path)).content)
    assert len(wanted[0]) == len(wanted[2]) == 1
    for cut in range(1, 15):
        running = await gateway(await engines([cut]))
        answer = (await running.post(body, path)).content
        found = comparable(answer)
        assert found[1:] == wanted[1:], cut
        assert len(found[0]) == 1, "one id, one time"
        assert answer.count(b"[DONE]") == 1
        assert answer.endswith(DONE)
        assert answer.count(b'"role"') == ("chat" in path)
        assert running.endings() == {("completed", 200): 1}


async def test_it_goes_on_through_one_death_after_the_other(
    engines: MakeEngines, gateway: MakeGateway
) -> None:
    body = chat(stream=True, max_tokens=30, temperature=0)
    whole = await gateway(await engines([]))
    wanted = comparable((await whole.post(body)).content)
    running = await gateway(await engines([3, 4, 5, 2]))
    assert comparable((await running.post(body)).content)[1:] == wanted[1:]
    assert running.app.metrics.of("m").resumed[0] == 4
