"""The OpenAI-compatible HTTP side of the simulated engine: a plain ASGI function, no framework.

An error known before the first byte has its real status and a JSON body, also where a stream was
asked for: the head goes out with the first token. A client that leaves ends its generation at once.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from aibrix_ray.asgi import Receive, Scope, Send
from aibrix_ray.config import SimulatedEngineConfig
from aibrix_ray.engines import simulated_answers as answers
from aibrix_ray.engines import simulated_requests as requests
from aibrix_ray.engines import simulated_tokens as tokens
from aibrix_ray.engines.base import ReplicaIdentity
from aibrix_ray.engines.meta import current_carry, record_usage
from aibrix_ray.engines.resume import Carry
from aibrix_ray.engines.simulated_answers import AnswerStyle, ChatStyle, CompletionStyle
from aibrix_ray.engines.simulated_exchange import Exchange, Watched, read_body
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
        body = await read_body(receive)
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
        await self._generate(exchange, request, asked, style)

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
        await self._generate(exchange, request, asked, style)

    async def _generate(
        self,
        exchange: Exchange,
        request: requests.ChatRequest | requests.CompletionRequest,
        asked: GenerationRequest,
        style: AnswerStyle,
    ) -> None:
        carry = current_carry()
        if carry is not None:
            asked = _carried(carry, request, asked)
        generation = self._engine.generate(asked)
        async with Watched(exchange, generation):
            if not asked.whole:
                told = _include_usage(request.stream_options)
                await _stream(exchange, generation, style, tell_usage=told, carry=carry)
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
        async with Watched(exchange, generation):
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


def _carried(
    carry: Carry,
    request: requests.ChatRequest | requests.CompletionRequest,
    asked: GenerationRequest,
) -> GenerationRequest:
    """Decide whether a request is carried over; return it with what another engine has made."""
    carry.permit(opening=isinstance(request, requests.ChatRequest))
    obstacle = requests.carry_obstacle(request, asked)
    if obstacle is None and carry.before is not None:
        try:
            asked = requests.resumed(asked, carry.before)
        except BadRequest as error:
            obstacle = error.message
    if not carry.decide(obstacle):
        raise BadRequest(f"The stream cannot be continued: {obstacle}")
    return asked


async def _stream(
    exchange: Exchange,
    generation: Generation,
    style: AnswerStyle,
    *,
    tell_usage: bool,
    carry: Carry | None,
) -> None:
    opening = style.opening(generation.sequences)
    if carry is not None and carry.resumes:
        opening = b""
        for sequence in generation.sequences:
            style.chunk(sequence, sequence.take_before())  # was sent by another engine
        carry.replaying = False
    try:
        while True:
            await generation.changed()
            if generation.gone:
                return
            done = generation.done
            data = _chunks(generation, style, carry)
            if opening and data:
                await exchange.stream(opening, more=True)
                opening = b""
            if done:
                usage = _report(generation, carry)
                data += style.usage_chunk(usage) if tell_usage else b""
                await exchange.stream(data + answers.DONE, more=False)
                return
            if data:
                await exchange.stream(data, more=True)
    except ApiError:
        # Told within the stream, never dressed up as an end; what was made is still charged.
        if exchange.started:
            if carry is not None:
                carry.broken = True
            _report(generation, carry)
            await exchange.stream(_chunks(generation, style, carry), more=True)
        raise


def _chunks(generation: Generation, style: AnswerStyle, carry: Carry | None) -> bytes:
    deltas = [
        (sequence, delta)
        for sequence in generation.sequences
        if (delta := sequence.take()) is not None
    ]
    if carry is not None and carry.carried:
        usage = _usage(generation, carry)
        carry.begin(prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens)
        for _, delta in deltas:
            carry.add(delta.token_ids)
    return b"".join(style.chunk(*each) for each in deltas)


async def _finished(generation: Generation) -> bool:
    """Wait for all of a generation; false if its client has left."""
    while not generation.done and not generation.gone:
        await generation.changed()
    return not generation.gone


def _report(generation: Generation, carry: Carry | None = None) -> Usage:
    """Tell the private meta channel the usage, before the end of the answer."""
    usage = _usage(generation, carry)
    record_usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )
    return usage


def _usage(generation: Generation, carry: Carry | None) -> Usage:
    usage = generation.usage()
    if carry is None or not carry.resumes:
        return usage
    cached = carry.cached_of(usage.cached_tokens, prompt_tokens=usage.prompt_tokens)
    return replace(usage, cached_tokens=cached)


async def _reply_error(exchange: Exchange, error: ApiError) -> None:
    body = answers.error_body(error)
    if exchange.streaming:
        await exchange.stream(b"data: " + body + b"\n\n" + answers.DONE, more=False)
    elif not exchange.started:
        await exchange.reply(error.status, body)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            found: str = value.decode("latin-1")
            return found
    return uuid.uuid4().hex


def _include_usage(options: requests.StreamOptions | None) -> bool:
    return options is not None and bool(options.include_usage)
