"""The private meta channel: what the gateway must know of an answer and the client must not see.

Runs in the replica, around the engine's own application. On a request that carries
`x-aibrix-meta: 1` it tells the gateway the usage: in an event stream as an SSE comment line
(`: aibrix {…}`) before the stream's end, in a plain answer as the response header `x-aibrix-meta`.
The gateway cuts both off. The engine reports usage by `record_usage` from within the request's
context (a context variable), so no answer is parsed and no request is rewritten.

It also guards the listener: a request without the replica's token is refused (when one is set),
and only the paths that the gateway forwards are let through.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from contextvars import ContextVar

import msgspec

from aibrix_ray.asgi import AsgiApp, Message, Receive, Scope, Send
from aibrix_ray.types import Usage

META_HEADER = b"x-aibrix-meta"
TOKEN_HEADER = b"x-aibrix-token"
RETRY_HEADER = b"x-aibrix-retry"
COMMENT_PREFIX = b": aibrix "


class MetaRecord:
    """Sums what the engine reports of one HTTP request (several prompts, `n` > 1)."""

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens", "seen")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.seen = False

    def encode(self) -> bytes:
        """Return the JSON that goes over the channel."""
        return msgspec.json.encode(
            {"usage": [self.prompt_tokens, self.cached_tokens, self.completion_tokens]}
        )


_RECORD: ContextVar[MetaRecord | None] = ContextVar("aibrix_ray_meta", default=None)


def record_usage(
    *, prompt_tokens: int = 0, cached_tokens: int = 0, completion_tokens: int = 0
) -> None:
    """Add to the usage of the HTTP request that runs in this context; no-op outside of one."""
    record = _RECORD.get()
    if record is not None:
        record.prompt_tokens += prompt_tokens
        record.cached_tokens += cached_tokens
        record.completion_tokens += completion_tokens
        record.seen = True


def decode_usage(data: bytes) -> Usage | None:
    """Read what `MetaRecord.encode` wrote; `None` where it is not that."""
    try:
        prompt, cached, completion = _DECODER.decode(data)["usage"]
    except (msgspec.MsgspecError, KeyError, ValueError):
        return None
    return Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)


_DECODER = msgspec.json.Decoder(dict[str, list[int]])


class ReplicaApp:
    """The ASGI application on a replica's listener: counts, drains, and feeds the meta channel.

    `in_flight` is the number of requests under way. While `draining` is set, new requests are
    refused with a private retryable status (503 with `x-aibrix-retry`), which no client ever sees:
    the gateway takes them to another replica.
    """

    def __init__(self, app: AsgiApp, *, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self.draining = False
        self.in_flight = 0
        self.on_idle: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        if scope["path"] not in self._paths:
            return await _refuse(send, 404, b"this path is not served on a replica's listener")
        if self.draining:
            return await _refuse(send, 503, b"draining", (RETRY_HEADER, b"draining"))
        self.in_flight += 1
        try:
            if _header(scope, META_HEADER) is None:
                await self._app(scope, receive, send)
            else:
                await self._with_meta(scope, receive, send)
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.on_idle()

    async def _with_meta(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = MetaRecord()
        token = _RECORD.set(record)
        streaming = told = False

        async def metered(message: Message) -> None:
            nonlocal streaming, told
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                streaming = _is_event_stream(headers)
                if not streaming and record.seen:
                    message = {**message, "headers": [*headers, (META_HEADER, record.encode())]}
            elif streaming and not told and record.seen and _ends_stream(message):
                told = True
                comment = COMMENT_PREFIX + record.encode() + b"\n\n"
                message = {**message, "body": comment + message.get("body", b"")}
            await send(message)

        try:
            await self._app(scope, receive, metered)
        finally:
            _RECORD.reset(token)


class TokenGuard:
    """Refuses every request without the replica's token; stands on TCP listeners only.

    A Unix socket in a 0700 directory needs none.
    """

    def __init__(self, app: AsgiApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request if it may be served."""
        if scope["type"] != "http":
            return
        if not hmac.compare_digest(_header(scope, TOKEN_HEADER) or b"", self._token):
            return await _refuse(send, 401, b"this listener belongs to the gateway")
        await self._app(scope, receive, send)


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def _is_event_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(k.lower() == b"content-type" and b"text/event-stream" in v for k, v in headers)


def _ends_stream(message: Message) -> bool:
    # A client may leave as soon as it has read [DONE], so the comment goes before it.
    return not message.get("more_body", False) or message.get("body", b"").endswith(
        b"data: [DONE]\n\n"
    )


async def _refuse(send: Send, status: int, text: bytes, *extra: tuple[bytes, bytes]) -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(text)).encode()),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
