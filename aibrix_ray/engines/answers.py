"""The engine's answers on their way out of the replica, brought to OpenAI's published document.

Stands around vLLM's own application and inside of `ReplicaApp`, so that each of vLLM's messages
becomes one message: the meta channel's lines stay with the events that they belong to. Where the
nulls go stands in `answer_nulls.py`, how errors are named in `answer_errors.py`. What is not
OpenAI's (`/v1/messages`, `/tokenize`, scores) is not changed, but for its errors.

A stream that begins with an error, which vLLM sends after a 200, becomes a plain answer with the
error's own status.
"""

from __future__ import annotations

from collections.abc import Callable

from aibrix_ray.asgi import AsgiApp, Headers, Message, Receive, Scope, Send
from aibrix_ray.config.engine import SimulatedEngineConfig, VllmEngineConfig
from aibrix_ray.engines.answer_errors import translate, translate_event
from aibrix_ray.engines.answer_nulls import clean_choices, clean_response, clean_response_event

_Clean = Callable[[bytes], bytes]

#: Path → how its whole answers and its events are cleaned.
_CLEAN: dict[str, tuple[_Clean, _Clean]] = {
    "/v1/chat/completions": (clean_choices, clean_choices),
    "/v1/completions": (clean_choices, clean_choices),
    "/v1/embeddings": (clean_choices, clean_choices),
    "/v1/responses": (clean_response, clean_response_event),
}
#: Anthropic's, which has errors of another shape.
_FOREIGN = frozenset({"/v1/messages", "/v1/messages/count_tokens"})

_ERROR_EVENT = b'data: {"error":'
_EVENT_STREAM = b"text/event-stream"
_JSON = b"application/json"


def answers_of(app: AsgiApp, config: VllmEngineConfig | SimulatedEngineConfig) -> AsgiApp:
    """Return `app` with its answers cleaned, if the engine's configuration says so."""
    wanted = isinstance(config, VllmEngineConfig) and config.clean_answers
    return CleanAnswers(app) if wanted else app


class CleanAnswers:
    """ASGI middleware around an engine's OpenAI application."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"] not in _FOREIGN:
            send = _Answer(scope["path"], send).send
        await self._app(scope, receive, send)


class _Answer:
    """One answer. Its head waits for the first bytes of the body, which may change it."""

    __slots__ = ("_clean", "_head", "_path", "_refused", "_send")

    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._send = send
        self._head: Message | None = None
        #: What is done to the messages of an event stream; `None`: it is none.
        self._clean: _Clean | None = None
        #: The stream began with an error, and was answered with that error's status instead.
        self._refused = False

    async def send(self, message: Message) -> None:
        """Take an ASGI message of the engine's application."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._clean is not None:
            await self._event(self._clean, message)
        elif self._head is not None:
            await self._whole(self._head, message)
        else:
            await self._send(message)

    async def _start(self, head: Message) -> None:
        kind = _header(head, b"content-type")
        if head["status"] < 400 and kind.startswith(_EVENT_STREAM):
            self._clean = _CLEAN.get(self._path, _UNTOUCHED)[1]
            self._head = head
        elif head["status"] >= 400 or (self._path in _CLEAN and kind.startswith(_JSON)):
            self._head = head
        else:
            await self._send(head)

    async def _event(self, clean: _Clean, message: Message) -> None:
        body = message.get("body", b"")
        head, self._head = self._head, None
        if body.startswith(_ERROR_EVENT):
            data, end, rest = body.removeprefix(b"data: ").partition(b"\n\n")
            status, data = translate_event(data, path=self._path)
            if head is not None:
                self._refused = True
                return await self._answer(head, status, data)
            body = b"data: " + data + end + rest
        elif self._refused:
            return
        else:
            body = clean(body)
        if head is not None:
            await self._send(head)
        await self._send({**message, "body": body})

    async def _whole(self, head: Message, message: Message) -> None:
        self._head = None
        status, body = head["status"], message.get("body", b"")
        if message.get("more_body", False):
            # vLLM sends a plain answer in one piece. What comes in several passes as it is.
            await self._send(head)
            await self._send(message)
        elif status >= 400:
            await self._answer(head, *translate(body, path=self._path, status=status))
        else:
            await self._answer(head, status, _CLEAN[self._path][0](body))

    async def _answer(self, head: Message, status: int, body: bytes) -> None:
        await self._send({**head, "status": status, "headers": _headers(head, len(body))})
        await self._send({"type": "http.response.body", "body": body})


def _as_it_is(body: bytes) -> bytes:
    return body


_UNTOUCHED = (_as_it_is, _as_it_is)


def _header(head: Message, name: bytes) -> bytes:
    return next((value for key, value in head.get("headers", ()) if key == name), b"")


def _headers(head: Message, length: int) -> Headers:
    """Return the headers for a body of JSON that is `length` bytes long."""
    changed = (b"content-length", b"content-type")
    kept = [pair for pair in head.get("headers", ()) if pair[0] not in changed]
    return [*kept, (b"content-type", _JSON), (b"content-length", b"%d" % length)]
