"""Clients that know every word of the answers they wait for; what each of them missed.

The simulated engine's greedy text is a function of the prompt, so an answer that another replica
finished must equal an undisturbed one to the letter. A client retries only what the official client
retries by default, and only where a gateway was killed while it asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from aibrix_ray.engines import simulated_tokens as tokens

_RETRIES = openai.DEFAULT_MAX_RETRIES
_RETRY_S = 0.5
_TIMEOUT_S = 60.0

#: Whether a connection that broke between two times may have been a killed gateway's.
Excuses = Callable[[float, float], bool]


@dataclass(frozen=True, slots=True)
class Question:
    """One greedy request and its only right answer."""

    prompt: str
    max_tokens: int
    chat: bool
    model: str = "sim"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @property
    def prompt_ids(self) -> list[int]:
        return tokens.encode_chat([("user", self.prompt)]) if self.chat else self._plain_ids

    @property
    def answer(self) -> str:
        """What the model says, undisturbed."""
        source = tokens.TokenSource(self.model, self.prompt_ids, seed="")
        return tokens.decode(source.next(may_end=False) for _ in range(self.max_tokens))

    def body(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt": self.prompt}
        if self.chat:
            asked = {"messages": [{"role": "user", "content": self.prompt}]}
        extra = {"temperature": 0.0, "max_tokens": self.max_tokens, "model": self.model}
        return {**asked, **extra}

    @property
    def _plain_ids(self) -> list[int]:
        return tokens.encode(self.prompt)


@dataclass(frozen=True, slots=True)
class Failure:
    """What a client did not get, and when it asked."""

    what: str
    begun_s: float
    ended_s: float


@dataclass(slots=True)
class Seen:
    """What all clients saw together."""

    plain: int = 0
    streams: int = 0
    #: Requests that a killed gateway broke and a retry (or, of a stream, nothing) mended.
    excused: int = 0
    lost: list[Failure] = field(default_factory=list)
    broken: list[Failure] = field(default_factory=list)


class Clients:
    """Clients in a closed loop, half of them streaming, half of each asking a chat."""

    def __init__(self, url: str, *, count: int, max_tokens: int, excuses: Excuses) -> None:
        self._url = url
        self._count = count
        self._max_tokens = max_tokens
        self._excuses = excuses
        self._stop = asyncio.Event()
        self.seen = Seen()

    async def __aenter__(self) -> Clients:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._count)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def until(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Wait until `count` more requests have been answered."""
        goal = self._answered + count
        async with asyncio.timeout(timeout_s):
            while self._answered < goal:
                await asyncio.sleep(0.05)

    @property
    def _answered(self) -> int:
        return self.seen.plain + self.seen.streams

    async def _client(self, number: int) -> None:
        official = openai.AsyncOpenAI(
            base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_S
        )
        async with official, httpx.AsyncClient(base_url=self._url, timeout=_TIMEOUT_S) as raw:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                chat = bool(number // 2 % 2)
                question = Question(f"client {number} says {turn}", self._max_tokens, chat)
                if number % 2:
                    await self._stream(raw, question)
                else:
                    await self._ask(official, question)

    async def _ask(self, client: openai.AsyncOpenAI, question: Question) -> None:
        began_s = time.monotonic()
        for attempt in range(_RETRIES + 1):
            begun_s = time.monotonic()
            try:
                text = await _plain_answer(client, question)
            except Exception as error:
                ended_s = time.monotonic()
                if attempt < _RETRIES and self._is_excused(error, begun_s, ended_s):
                    await asyncio.sleep(_RETRY_S)
                    continue
                self.seen.lost.append(Failure(_chain(error), begun_s, ended_s))
                return
            if text == question.answer:
                self.seen.plain += 1
                self.seen.excused += attempt > 0
            else:
                what = f"another text: {text!r} instead of {question.answer!r}"
                self.seen.lost.append(Failure(what, began_s, time.monotonic()))
            return

    async def _stream(self, client: httpx.AsyncClient, question: Question) -> None:
        begun_s = time.monotonic()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {**question.body(), "ignore_eos": True, **options}
        received = bytearray()
        try:
            async with client.stream("POST", question.path, json=body) as answer:
                async for chunk in answer.aiter_bytes():
                    received += chunk
                problem = None if answer.status_code == 200 else f"status {answer.status_code}"
        except httpx.HTTPError as error:
            ended_s = time.monotonic()
            if self._is_excused(error, begun_s, ended_s):
                self.seen.excused += 1
            else:
                what = f"{_chain(error)}; after {bytes(received[-200:])!r}"
                self.seen.broken.append(Failure(what, begun_s, ended_s))
            return
        problem = problem or judge_stream(bytes(received), question)
        if problem is None:
            self.seen.streams += 1
        else:
            what = f"{problem}; the end: {bytes(received[-300:])!r}"
            self.seen.broken.append(Failure(what, begun_s, time.monotonic()))

    def _is_excused(self, error: Exception, begun_s: float, ended_s: float) -> bool:
        """A connection that broke is; one that was refused is not, as a sibling holds the port."""
        broke = isinstance(error, (openai.APIConnectionError, httpx.NetworkError))
        broke |= isinstance(error, httpx.RemoteProtocolError)
        timed_out = isinstance(error, (openai.APITimeoutError, httpx.TimeoutException))
        refused = any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))
        return broke and not timed_out and not refused and self._excuses(begun_s, ended_s)


async def _plain_answer(client: openai.AsyncOpenAI, question: Question) -> str:
    body = question.body()
    extra = {"ignore_eos": True}
    if question.chat:
        answer = await client.chat.completions.create(**body, extra_body=extra)
        text = answer.choices[0].message.content
    else:
        completion = await client.completions.create(**body, extra_body=extra)
        text = completion.choices[0].text
    return text or ""


def judge_stream(received: bytes, question: Question) -> str | None:
    """Return what is wrong with a stream: one answer under one id, whole, once, and counted."""
    parts = [part for part in received.split(b"\n\n") if part and not part.startswith(b":")]
    if not parts or parts[-1] != b"data: [DONE]":
        return "no [DONE]"
    events = [json.loads(part.removeprefix(b"data: ")) for part in parts[:-1]]
    errors = [event["error"] for event in events if "error" in event]
    if errors:
        return f"an error frame: {errors[0]}"
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join(_text(choice) for choice in choices)
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    ids = {event["id"] for event in events}
    usages = [event["usage"] for event in events if event.get("usage")]
    if text != question.answer:
        return f"another text: {text!r} instead of {question.answer!r}"
    if finishes != ["length"] or len(ids) != 1:
        return f"finish reasons {finishes}, ids {ids}"
    counted = [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages]
    if counted != [(len(question.prompt_ids), question.max_tokens)]:
        return f"usage {counted}"
    return None


def _text(choice: dict[str, Any]) -> str:
    return choice["delta"].get("content") or "" if "delta" in choice else str(choice["text"])


def _chain(error: BaseException) -> str:
    return " / ".join(f"{type(cause).__name__}: {cause}" for cause in _causes(error))


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
