"""What a gateway does with a carried stream: reads its lines, and puts two parts together."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aibrix_ray.asgi import ON_DISCONNECT, AsgiApp, Message
from aibrix_ray.engines.meta import COMMENT_PREFIX, decode_usage
from aibrix_ray.types import Usage

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = {"x-aibrix-meta": "1", "x-aibrix-tokens": "1"}

#: Asks for a stream: (path, body, headers) → (status, headers, the messages of its body).
Ask = Callable[[str, dict[str, Any], dict[str, str]], Awaitable["Answer"]]


class Answer:
    """A whole answer; `broken` if it was cut off."""

    def __init__(
        self, status: int, headers: dict[str, str], messages: list[bytes], *, broken: bool = False
    ) -> None:
        self.status = status
        self.headers = headers
        self.messages = messages
        self.broken = broken

    def reading(self) -> Reading:
        assert self.status == 200, (self.status, self.messages)
        return Reading(self.messages)


class Reading:
    """The messages of a stream, or of its beginning, without what the client must not see."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self.prompt: tuple[int, int] | None = None
        self.ids: list[int] = []
        self.events: list[bytes] = []
        self.usage: Usage | None = None
        for message in messages:
            self._read(message)

    def _read(self, message: bytes) -> None:
        while message.startswith((b":=", b":+")):
            line, _, message = message.partition(b"\n")
            numbers = [int(part) for part in line[2:].split(b",")]
            if line.startswith(b":="):
                assert self.prompt is None, "the prompt is told once"
                assert not self.ids, "and before the first ids"
                self.prompt = (numbers[0], numbers[1])
            else:
                self.ids += numbers
        assert b":+" not in message, message
        assert not message or message.endswith(b"\n\n"), message
        for event in message.split(b"\n\n")[:-1]:
            if event.startswith(COMMENT_PREFIX):
                self.usage = decode_usage(event.removeprefix(COMMENT_PREFIX))
            elif event != b":":
                assert event.startswith(b"data: "), event
                self.events.append(event.removeprefix(b"data: "))

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events if event != b"[DONE]"]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(
            c["delta"].get("content", "") if "delta" in c else c["text"] for c in self.choices
        )

    @property
    def ends(self) -> list[tuple[str, Any]]:
        return [
            (choice["finish_reason"], choice.get("stop_reason"))
            for choice in self.choices
            if choice["finish_reason"]
        ]

    @property
    def told_usage(self) -> list[dict[str, Any]]:
        found = [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]
        for usage in found:  # vLLM's own, and absent once a stream is resumed
            (usage.get("prompt_tokens_details") or {}).pop("created_cache_tokens", None)
        return found


def resume(prefix: Reading) -> dict[str, str]:
    """Return the headers that ask to go on after what was read."""
    cached = {"x-aibrix-cached": str(prefix.prompt[1])} if prefix.prompt else {}
    return {**TOKENS, **cached, "x-aibrix-resume": ",".join(map(str, prefix.ids))}


async def assert_unbroken(ask: Ask, path: str, body: dict[str, Any], *, step: int = 1) -> Reading:
    """Cut a stream at every `step`-th message; with its continuation it must be the whole one."""
    body = {"stream": True, **body}
    name = {"x-request-id": "same"}
    messages = (await ask(path, body, TOKENS | name)).messages
    whole = Reading(messages)
    assert whole.ids
    for count in [*range(0, len(messages), step), len(messages) - 1]:
        prefix = Reading(messages[:count])
        if prefix.events and prefix.events[-1] == b"[DONE]":
            continue
        answer = await ask(path, body, resume(prefix) | name)
        rest = answer.reading()
        assert answer.messages[0] == b":=%d,%d\n:\n\n" % (rest.prompt or (0, 0)), answer.messages
        assert_continues(prefix, rest, whole)
    return whole


def assert_continues(prefix: Reading, rest: Reading, whole: Reading) -> None:
    """Assert that a stream's beginning and its continuation are what was undisturbed."""
    assert prefix.ids + rest.ids == whole.ids
    assert prefix.text + rest.text == whole.text
    assert prefix.ends + rest.ends == whole.ends
    assert len(whole.ends) == 1
    assert rest.usage is not None
    assert whole.usage is not None
    if prefix.prompt:
        assert rest.prompt == prefix.prompt
        assert rest.usage == whole.usage
        assert (rest.told_usage or prefix.told_usage)[-1:] == whole.told_usage[-1:]
    assert rest.usage.completion_tokens == whole.usage.completion_tokens
    assert {chunk["id"] for chunk in rest.chunks} <= {chunk["id"] for chunk in whole.chunks}
    assert not any(choice.get("delta", {}).get("role") for choice in rest.choices)
    assert rest.events[-1] == b"[DONE]"


async def ask_app(app: AsgiApp, path: str, body: Any, headers: dict[str, str]) -> Answer:
    """Ask an application without a socket, so that its messages are seen as it sends them."""
    sent: list[Message] = []
    asked = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        raise AssertionError("the hook tells of a disconnect")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        ON_DISCONNECT: None,
    }
    await app(scope, receive, send)
    start, *parts = sent
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    bodies = [part.get("body", b"") for part in parts]
    broken = not parts or parts[-1].get("more_body", False)
    return Answer(start["status"], told, [body for body in bodies if body], broken=broken)


async def ask_socket(uds: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
    """Ask over a Unix socket; each chunk of HTTP's is a message."""
    reader, writer = await asyncio.open_unix_connection(uds)
    data = json.dumps(body).encode()
    told = {
        "host": "engine",
        "content-type": "application/json",
        "content-length": str(len(data)),
        "connection": "close",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
    try:
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        found = dict(line.split(": ", 1) for line in lines)
        messages, complete = await _read_messages(reader, found)
        return Answer(int(status.split()[1]), found, messages, broken=not complete)
    finally:
        writer.close()


async def _read_messages(
    reader: asyncio.StreamReader, headers: dict[str, str]
) -> tuple[list[bytes], bool]:
    if "content-length" in headers:
        return [await reader.readexactly(int(headers["content-length"]))], True
    messages: list[bytes] = []
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            data = await reader.readexactly(size + 2)
            if not size:
                return messages, True
            messages.append(data[:-2])
    return messages, False
