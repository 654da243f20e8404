"""The OpenAI-compatible HTTP side of the simulated engine: a plain ASGI function, no framework.

An error known before the first byte has its real status and a JSON body, also where a stream was
asked for: the head goes out with the first token. A client that leaves ends its generation at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Protocol

from aibrix_ray.asgi import ON_DISCONNECT, Message, Receive, Scope, Send
from aibrix_ray.config import SimulatedEngineConfig
from aibrix_ray.engines import simulated_answers as answers
from aibrix_ray.engines import simulated_requests as requests
from aibrix_ray.engines import simulated_tokens as tokens
from aibrix_ray.engines.base import ReplicaIdentity
from aibrix_ray.engines.meta import record_usage
from aibrix_ray.engines.simulated_answers import AnswerStyle, ChatStyle, CompletionStyle
from aibrix_ray.engines.simulated_generation import Generation, GenerationRequest
from aibrix_ray.errors import (
    ApiError,
    BadRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    ServerError,
)
from aibrix_ray.types import Usage

logger = logging.getLogger(__name__)

#: Length of the vectors of /v1/embeddings.
EMBEDDING_DIMENSIONS = 64

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"


class Generates(Protocol):
    """What the application needs of its engine."""

    identity: ReplicaIdentity
    config: SimulatedEngineConfig

    def generate(self, request: GenerationRequest) -> Generation:
        """Queue a request."""
        ...

    async def check_health(self) -> None:
        """Raise if the engine makes no progress."""
        ...


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


Handler = Callable[[Exchange], Awaitable[None]]


class SimulatedApp:
    """The ASGI application of one engine."""

    def __init__(self, engine: Generates, *, unix_time: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._model = engine.identity.model
        self._max_model_len = engine.config.max_model_len
        self._unix_time = unix_time
        self._created = int(unix_time())
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completions),
            "/v1/embeddings": ("POST", self._embeddings),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        body = await _read_body(receive)
        if body is None:
            return  # the client left before it had asked
        exchange = Exchange(scope, receive, send, body)
        try:
            await self._route(scope)(exchange)
        except ApiError as error:
            await _reply_error(exchange, error)
        except OSError as error:  # what an ASGI server's `send` raises once the client has left
            logger.debug("the client of %s left: %s", scope["path"], error)
        except Exception:
            logger.exception("a request for %s failed", scope["path"])
            await _reply_error(exchange, ServerError("internal error of the simulated engine"))

    def _route(self, scope: Scope) -> Handler:
        found = self._routes.get(scope["path"])
        if found is None:
            raise NotFound(f"There is no path {scope['path']!r} here.")
        method, handler = found
        if scope["method"] != method:
            raise MethodNotAllowed(f"{scope['path']} takes {method}, not {scope['method']}.")
        return handler

    async def _chat(self, exchange: Exchange) -> None:
        request = requests.parse(exchange.body, requests.ChatRequest)
        self._check_model(request.model)
        asked = requests.chat_generation(request, max_model_len=self._max_model_len)
        style = ChatStyle(
            f"chatcmpl-{_request_id(exchange.scope)}",
            created=int(self._unix_time()),
            model=self._model,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            token_ids=bool(request.return_token_ids),
        )
        options = request.stream_options
        await self._generate(exchange, asked, style, tell_usage=_include_usage(options))

    async def _completions(self, exchange: Exchange) -> None:
        request = requests.parse(exchange.body, requests.CompletionRequest)
        self._check_model(request.model)
        asked = requests.completion_generation(request, max_model_len=self._max_model_len)
        style = CompletionStyle(
            f"cmpl-{_request_id(exchange.scope)}",
            created=int(self._unix_time()),
            model=self._model,
            logprobs=request.logprobs,
            token_ids=bool(request.return_token_ids),
        )
        options = request.stream_options
        await self._generate(exchange, asked, style, tell_usage=_include_usage(options))

    async def _generate(
        self, exchange: Exchange, asked: GenerationRequest, style: AnswerStyle, *, tell_usage: bool
    ) -> None:
        generation = self._engine.generate(asked)
        async with _Watched(exchange, generation):
            if not asked.whole:
                await _stream(exchange, generation, style, tell_usage=tell_usage)
            elif await _finished(generation):
                usage = _report(generation)
                await exchange.reply(200, style.whole(generation.sequences, usage))

    async def _embeddings(self, exchange: Exchange) -> None:
        request = requests.parse(exchange.body, requests.EmbeddingRequest)
        self._check_model(request.model)
        if request.dimensions not in (None, EMBEDDING_DIMENSIONS):
            raise BadRequest(
                f"`dimensions` must be {EMBEDDING_DIMENSIONS} for this model.", param="dimensions"
            )
        inputs = requests.prompts_of(request.input, "input")
        for ids in inputs:
            requests.check_length(ids, param="input", max_model_len=self._max_model_len)
        asked = GenerationRequest([(ids, 0) for ids in inputs], whole=True)
        generation = self._engine.generate(asked)
        async with _Watched(exchange, generation):
            if await _finished(generation):
                usage = _report(generation)
                vectors = [
                    tokens.embed(self._model, ids, dimensions=EMBEDDING_DIMENSIONS)
                    for ids in inputs
                ]
                base64 = request.encoding_format == "base64"
                body = answers.embeddings_body(
                    vectors, model=self._model, usage=usage, base64=base64
                )
                await exchange.reply(200, body)

    async def _tokenize(self, exchange: Exchange) -> None:
        request = requests.parse(exchange.body, requests.TokenizeRequest)
        self._check_model(request.model)
        if request.messages is not None:
            ids = requests.chat_prompt(request.messages)
        elif request.prompt is not None:
            ids = tokens.encode(request.prompt)
        else:
            raise BadRequest("Either `prompt` or `messages` must be given.", param="prompt")
        found = {
            "count": len(ids),
            "max_model_len": self._max_model_len,
            "tokens": ids,
            "token_strs": [tokens.decode([token]) for token in ids]
            if request.return_token_strs
            else None,
        }
        await exchange.reply(200, answers.encode(found))

    async def _detokenize(self, exchange: Exchange) -> None:
        request = requests.parse(exchange.body, requests.DetokenizeRequest)
        self._check_model(request.model)
        requests.check_token_ids(request.tokens, "tokens")
        await exchange.reply(200, answers.encode({"prompt": tokens.decode(request.tokens)}))

    async def _models(self, exchange: Exchange) -> None:
        body = answers.models_body(
            self._model, created=self._created, max_model_len=self._max_model_len
        )
        await exchange.reply(200, body)

    async def _health(self, exchange: Exchange) -> None:
        try:
            await self._engine.check_health()
        except RuntimeError as error:
            logger.warning("not healthy: %s", error)
            await exchange.reply(503, b"")
        else:
            await exchange.reply(200, b"")

    def _check_model(self, model: str | None) -> None:
        if model is not None and model != self._model:
            raise ModelNotFound(model, [self._model])


class _Watched:
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


async def _stream(
    exchange: Exchange, generation: Generation, style: AnswerStyle, *, tell_usage: bool
) -> None:
    try:
        while True:
            await generation.changed()
            if generation.gone:
                return
            done = generation.done
            data = _chunks(generation, style)
            if not exchange.started and data:
                data = style.opening(generation.sequences) + data
            if done:
                usage = _report(generation)
                data += style.usage_chunk(usage) if tell_usage else b""
                await exchange.stream(data + answers.DONE, more=False)
                return
            if data:
                await exchange.stream(data, more=True)
    except ApiError:
        # Told within the stream, never dressed up as an end; what was made is still charged.
        if exchange.started:
            _report(generation)
            await exchange.stream(_chunks(generation, style), more=True)
        raise


def _chunks(generation: Generation, style: AnswerStyle) -> bytes:
    return b"".join(
        style.chunk(sequence, delta)
        for sequence in generation.sequences
        if (delta := sequence.take()) is not None
    )


async def _finished(generation: Generation) -> bool:
    """Wait for all of a generation; false if its client has left."""
    while not generation.done and not generation.gone:
        await generation.changed()
    return not generation.gone


def _report(generation: Generation) -> Usage:
    """Tell the private meta channel the usage, before the end of the answer."""
    usage = generation.usage()
    record_usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )
    return usage


async def _reply_error(exchange: Exchange, error: ApiError) -> None:
    body = answers.error_body(error)
    if exchange.streaming:
        await exchange.stream(b"data: " + body + b"\n\n" + answers.DONE, more=False)
    elif not exchange.started:
        await exchange.reply(error.status, body)


async def _read_body(receive: Receive) -> bytes | None:
    parts = []
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            found: str = value.decode("latin-1")
            return found
    return uuid.uuid4().hex


def _include_usage(options: requests.StreamOptions | None) -> bool:
    return options is not None and bool(options.include_usage)
