"""The private meta channel: what the gateway must know of an answer and the client must not see.

Runs in the replica, around the engine's own application. On a request that carries
`x-aibrix-meta: 1` it tells the gateway the usage: in an event stream as an SSE comment line
(`: aibrix {…}`) before the stream's end, in a plain answer as the response header `x-aibrix-meta`.
The gateway cuts both off. The engine reports usage by `record_usage` from within the request's
context (a context variable), so no answer is parsed and no request is rewritten.

**Token ids**, by which another replica can go on with a stream (`resume`). On a request with
`x-aibrix-tokens: 1` the messages of its event stream begin with comment lines, if and only if the
stream can be carried over to another replica:

    message  = [prompt] [ids] event…
    prompt   = ":=" PROMPT_TOKENS "," CACHED_TOKENS LF     once, with or before the first ids
    ids      = ":+" ID *("," ID) LF                        decimal, no spaces

A message is what the engine sends at once, one chunk of HTTP's; the lines stand nowhere but at its
beginning, and before the usage comment. The ids of a message are those of the tokens whose text is
in it, or is still held back (an incomplete character, what may be the beginning of a stop string):
all ids so far, detokenized again, give the text so far. A chat's first event (its role) has none.

With `x-aibrix-resume: ID,ID,…` the same request, body unchanged, is continued after these ids (an
empty value: none had come). `x-aibrix-cached: N` says how many cached tokens the first `prompt`
line told, and makes the usage exact. The answer is 200 and its stream begins with a message of its
own, `prompt` and an empty comment (`:`), which says that this is a continuation; after that comes
only what the client does not have yet: no role, no text or finish reason that came with these ids;
`ids` are new ones only, usage is that of the whole request. A request that cannot be continued is
`409` with `x-aibrix-resume: refused` and the reason as its text. A stream whose engine dies below
the replica is cut off, so that it goes on elsewhere; one that is not carried ends with the engine's
own error event.

This module also guards the listener: a request without the replica's token is refused (when one is
set), and only the paths that the gateway forwards are let through.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from contextvars import ContextVar

import msgspec

from aibrix_ray.asgi import AsgiApp, ConnectionLimits, Message, Receive, Scope, Send
from aibrix_ray.engines.resume import Carry, parse_ids
from aibrix_ray.types import Usage

META_HEADER = b"x-aibrix-meta"
TOKEN_HEADER = b"x-aibrix-token"
RETRY_HEADER = b"x-aibrix-retry"
TOKENS_HEADER = b"x-aibrix-tokens"
RESUME_HEADER = b"x-aibrix-resume"
CACHED_HEADER = b"x-aibrix-cached"
RESUME_REFUSED = b"refused"
COMMENT_PREFIX = b": aibrix "
#: Of a replica's listeners: the ids of a long answer are a long header.
REPLICA_LIMITS = ConnectionLimits(max_header_bytes=8 * 2**20)


class MetaRecord:
    """What the engine reports of one HTTP request: a sum (several prompts, `n` > 1), and its ids.

    `carry` is there where the gateway asked for token ids.
    """

    __slots__ = ("cached_tokens", "carry", "completion_tokens", "prompt_tokens", "seen")

    def __init__(self, carry: Carry | None = None) -> None:
        self.carry = carry
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


def current_carry() -> Carry | None:
    """Return how the HTTP request of this context is carried over; `None`: nobody asked."""
    record = _RECORD.get()
    return None if record is None else record.carry


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
            asked = _asked(scope)
            if not asked:
                await self._app(scope, receive, send)
            elif (record := _record_of(asked)) is None:
                await _refuse_resume(send, "the header holds no token ids")
            else:
                answer = _Answer(record, send, tell_usage=META_HEADER in asked)
                await self._with_record(record, scope, receive, answer.send)
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.on_idle()

    async def _with_record(
        self, record: MetaRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        token = _RECORD.set(record)
        try:
            await self._app(scope, receive, send)
        finally:
            _RECORD.reset(token)


class _Answer:
    """One answer on its way out: what the engine reported is put between its messages."""

    __slots__ = ("_carry", "_dropped", "_record", "_send", "_streaming", "_untold")

    def __init__(self, record: MetaRecord, send: Send, *, tell_usage: bool) -> None:
        self._record = record
        self._carry = record.carry
        self._send = send
        #: The usage is wanted and has not been told.
        self._untold = tell_usage
        self._streaming = False
        #: A refusal went out instead of the engine's answer.
        self._dropped = False

    async def send(self, message: Message) -> None:
        """Take an ASGI message of the engine's application."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif not self._streaming:
            if not self._dropped:
                await self._send(message)
        elif self._carry is None or not self._carry.carried:
            await self._send(self._with_lines(message, b""))
        elif not self._carry.broken:
            await self._send_carried(message, self._carry)

    async def _start(self, message: Message) -> None:
        carry = self._carry
        if carry is not None and carry.refuses(message["status"]):
            self._dropped = True
            return await _refuse_resume(self._send, carry.refusal or "not a stream of text")
        headers = list(message.get("headers", ()))
        self._streaming = _is_event_stream(headers)
        if self._untold and not self._streaming and self._record.seen:
            message = {**message, "headers": [*headers, (META_HEADER, self._record.encode())]}
        await self._send(message)

    async def _send_carried(self, message: Message, carry: Carry) -> None:
        body = message.get("body", b"")
        if body and carry.replaying:
            return
        if carry.resumes and (told := carry.acknowledgement()):
            await self._send({"type": "http.response.body", "body": told, "more_body": True})
        await self._send(self._with_lines(message, carry.lines(body)))

    def _with_lines(self, message: Message, lines: bytes) -> Message:
        if self._untold and self._record.seen and _ends_stream(message):
            self._untold = False
            lines += COMMENT_PREFIX + self._record.encode() + b"\n\n"
        return {**message, "body": lines + message["body"]} if lines else message


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


def _asked(scope: Scope) -> dict[bytes, bytes]:
    """Return those of the gateway's headers that ask for something beside the answer."""
    return {key: value for key, value in scope["headers"] if key in _ASKING}


_ASKING = frozenset({META_HEADER, TOKENS_HEADER, RESUME_HEADER, CACHED_HEADER})


def _record_of(asked: dict[bytes, bytes]) -> MetaRecord | None:
    """Return the record that the gateway's headers ask for; `None` if they cannot be read."""
    resume = asked.get(RESUME_HEADER)
    if resume is None:
        return MetaRecord(Carry() if TOKENS_HEADER in asked else None)
    before = parse_ids(resume)
    if before is None:
        return None
    cached = parse_ids(asked.get(CACHED_HEADER, b""))
    return MetaRecord(Carry(before, cached[0] if cached else None))


def _is_event_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(k.lower() == b"content-type" and b"text/event-stream" in v for k, v in headers)


def _ends_stream(message: Message) -> bool:
    # A client may leave as soon as it has read [DONE], so the comment goes before it.
    return not message.get("more_body", False) or message.get("body", b"").endswith(
        b"data: [DONE]\n\n"
    )


async def _refuse_resume(send: Send, reason: str) -> None:
    await _refuse(send, 409, reason.encode(), (RESUME_HEADER, RESUME_REFUSED))


async def _refuse(send: Send, status: int, text: bytes, *extra: tuple[bytes, bytes]) -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(text)).encode()),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
