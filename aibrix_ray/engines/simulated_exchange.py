"""One HTTP request of the simulated engine: what came, the way out, and the client's leaving."""

from __future__ import annotations

import asyncio

from aibrix_ray.asgi import ON_DISCONNECT, Message, Receive, Scope, Send
from aibrix_ray.engines.simulated_generation import Generation

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"


class Exchange:
    """One request: what came, and where its answer goes."""

    __slots__ = ("body", "receive", "scope", "send", "started", "streaming")

    def __init__(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.body = body
        #: Whether a head has been sent, and whether it was that of an event stream.
        self.started = self.streaming = False

    async def reply(self, status: int, body: bytes) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [(b"content-type", _JSON), length])
        await self.send({"type": "http.response.body", "body": body})

    async def stream(self, data: bytes, *, more: bool) -> None:
        """Send a part of an event stream; with the first one goes the head."""
        if not self.started:
            self.streaming = True
            await self._start(200, [(b"content-type", _EVENTS), (b"cache-control", b"no-cache")])
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


class Watched:
    """Ends a generation when its client leaves, and in any case at the end of the block."""

    def __init__(self, exchange: Exchange, generation: Generation) -> None:
        self._exchange = exchange
        self._generation = generation
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if ON_DISCONNECT in self._exchange.scope:
            self._exchange.scope[ON_DISCONNECT] = self._generation.abort
        else:
            self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        self._generation.abort()

    async def _watch(self) -> None:
        """Wait for the disconnect where the server has no hook for it."""
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self._generation.abort()


async def read_body(receive: Receive) -> bytes | None:
    """Return the body; `None` if the client left before it had sent all."""
    parts = []
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
