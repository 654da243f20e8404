"""Clients under which things are killed: what each of them saw, counted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field

import httpx
import openai


@dataclass
class Seen:
    """What the clients saw. `lost` holds the text of every failure."""

    completed: int = 0
    streams_whole: int = 0
    streams_ended_by_error: int = 0
    lost: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    replicas: Counter[str] = field(default_factory=Counter)


class Load:
    """`clients` concurrent clients in a closed loop, every second one streaming if asked for."""

    def __init__(
        self,
        url: str,
        *,
        clients: int,
        streaming: bool = False,
        retries: int = 0,
        max_tokens: int = 24,
        model: str = "sim",
    ) -> None:
        self._url = url
        self._clients = clients
        self._streaming = streaming
        self._retries = retries
        self._model = model
        self._max_tokens = max_tokens
        self._stop = asyncio.Event()
        self.seen = Seen()
        self.max_latency_s = 0.0

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._client(i)) for i in range(self._clients)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def until(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Wait until `count` more requests have been answered."""
        goal = self.done + count
        async with asyncio.timeout(timeout_s):
            while self.done < goal:
                await asyncio.sleep(0.02)

    @property
    def done(self) -> int:
        return self.seen.completed + self.seen.streams_whole + self.seen.streams_ended_by_error

    async def _client(self, number: int) -> None:
        client = openai.AsyncOpenAI(
            base_url=f"{self._url}/v1",
            api_key="none",
            max_retries=self._retries,
            timeout=60.0,
        )
        async with client:
            while not self._stop.is_set():
                if self._streaming and number % 2:
                    await self._stream(number)
                else:
                    await self._ask(client, number)

    async def _ask(self, client: openai.AsyncOpenAI, number: int) -> None:
        try:
            answer = await client.completions.with_raw_response.create(
                model=self._model,
                prompt=f"client {number} says {self.done}",
                max_tokens=self._max_tokens,
                extra_body={"ignore_eos": True},
            )
            usage = answer.parse().usage
            assert usage is not None
            assert usage.completion_tokens == self._max_tokens
            self.seen.completed += 1
            self.seen.replicas[answer.headers["target-replica"]] += 1
        except Exception as error:
            self.seen.lost.append(f"{type(error).__name__}: {error} / {error.__cause__!r}")

    async def _stream(self, number: int) -> None:
        body = {
            "model": self._model,
            "prompt": f"stream {number} {self.done}",
            "max_tokens": self._max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        text = b""
        try:
            async with (
                httpx.AsyncClient(timeout=60.0) as client,
                client.stream("POST", f"{self._url}/v1/completions", json=body) as answer,
            ):
                if answer.status_code != 200:
                    self.seen.lost.append(f"stream: {answer.status_code}")
                    return
                async for chunk in answer.aiter_bytes():
                    text += chunk
        except httpx.HTTPError as error:
            self.seen.broken.append(f"{type(error).__name__}: {error}; after {text[-80:]!r}")
            return
        self._judge(text)

    def _judge(self, text: bytes) -> None:
        """A stream must be whole events, then [DONE]; either finished or with one error frame."""
        events = [e.removeprefix(b"data: ") for e in text.split(b"\n\n") if e]
        if not events or events[-1] != b"[DONE]":
            self.seen.broken.append(f"no [DONE]: {text[-80:]!r}")
            return
        decoded = [json.loads(event) for event in events[:-1]]
        errors = [event for event in decoded if "error" in event]
        finished = [
            choice["finish_reason"]
            for event in decoded
            for choice in event.get("choices", ())
            if choice["finish_reason"] is not None
        ]
        if (
            errors
            and not finished
            and set(errors[0]["error"])
            == {
                "message",
                "type",
                "code",
                "param",
            }
        ):
            self.seen.streams_ended_by_error += 1
        elif finished == ["length"] and not errors:
            self.seen.streams_whole += 1
        else:
            self.seen.broken.append(f"{len(errors)} errors, finish {finished}")
