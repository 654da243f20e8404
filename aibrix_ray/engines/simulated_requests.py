"""What clients of the simulated engine send: the bodies, their checks, and what they ask for.

Fields that only shape a distribution (penalties, `top_p`, `top_k`, `logit_bias`) are checked and
then of no effect, since the tokens are a hash. What would change the answer's form and cannot be
done is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from aibrix_ray.engines import simulated_tokens as tokens
from aibrix_ray.engines.meta import RESUME_HEADER
from aibrix_ray.engines.simulated_generation import GenerationRequest, Sampling
from aibrix_ray.errors import BadRequest

T = TypeVar("T")

_Count = Annotated[int, Meta(ge=1)]
_Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
_Share = Annotated[float, Meta(gt=0.0, le=1.0)]
_TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
_Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class StreamOptions(Struct):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ContentPart(Struct):
    """One part of a message's content; this engine reads text only."""

    type: str
    text: str | None = None


class Message(Struct):
    """One message of a conversation."""

    role: _Role
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None


class _Generate(Struct, kw_only=True):
    """What chat and completions have in common."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: _Count | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1)] | None = None
    response_format: dict[str, Any] | None = None
    echo: bool | None = None
    use_beam_search: bool | None = None
    prompt_logprobs: int | None = None


class ChatRequest(_Generate, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None


class CompletionRequest(_Generate, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[Any]
    logprobs: _TopLogprobs | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """The body of /v1/embeddings."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class TokenizeRequest(Struct, kw_only=True):
    """The body of /tokenize: a prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """The body of /detokenize."""

    tokens: list[int]
    model: str | None = None


def parse(body: bytes, kind: type[T]) -> T:
    """Read a body.

    Raises:
        BadRequest: it is no JSON, or not of this kind; names the field at fault.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from error


def chat_prompt(messages: Iterable[Message]) -> list[int]:
    """Return the token ids of a conversation."""
    return tokens.encode_chat(
        (message.role, _content(message, f"messages[{index}].content") + _calls(message))
        for index, message in enumerate(messages)
    )


def prompts_of(value: str | list[Any], param: str) -> list[list[int]]:
    """Return the token ids of `prompt` or `input`: a text, ids, or a list of either."""
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        return [_prompt(value, param)]
    if not value:
        raise BadRequest(f"`{param}` must not be empty.", param=param)
    return [_prompt(item, f"{param}[{index}]") for index, item in enumerate(value)]


def chat_generation(request: ChatRequest, *, max_model_len: int) -> GenerationRequest:
    """Return what a chat request asks for."""
    _refuse_what_is_not_supported(request)
    if request.tool_choice not in (None, "none", "auto"):
        raise _unsupported("tool_choice")
    if request.top_logprobs and not request.logprobs:
        raise BadRequest(
            "When `top_logprobs` is set, `logprobs` must be true.", param="top_logprobs"
        )
    limit = request.max_completion_tokens or request.max_tokens
    prompt = chat_prompt(request.messages)
    max_tokens = _bounded(prompt, limit, param="messages", max_model_len=max_model_len)
    return _generation(request, [(prompt, max_tokens)])


def completion_generation(request: CompletionRequest, *, max_model_len: int) -> GenerationRequest:
    """Return what a completion request asks for."""
    _refuse_what_is_not_supported(request)
    if request.best_of not in (None, 1, request.n):
        raise _unsupported("best_of")
    if request.suffix:
        raise _unsupported("suffix")
    prompts = []
    for prompt in prompts_of(request.prompt, "prompt"):
        room = max_model_len - len(prompt)
        limit = request.max_tokens or min(16, max(1, room))
        limit = _bounded(prompt, limit, param="prompt", max_model_len=max_model_len)
        prompts.append((prompt, limit))
    return _generation(request, prompts)


def carry_obstacle(
    request: ChatRequest | CompletionRequest, asked: GenerationRequest
) -> str | None:
    """Return what keeps a request from being carried over to another replica; `None`: nothing.

    The same requests are refused as with vLLM, though a hash would not mind some of them.
    """
    if asked.whole:
        return "it is no stream"
    if len(asked.prompts) * len(asked.seeds) > 1:
        return "it has several choices"
    if request.logprobs not in (None, False):
        return "it tells log probabilities"
    if request.presence_penalty or request.frequency_penalty:
        return "a penalty depends on more than token ids"
    if isinstance(request, ChatRequest) and request.tools and request.tool_choice != "none":
        return "a tool parser reads its text"
    return None


def resumed(asked: GenerationRequest, before: list[int]) -> GenerationRequest:
    """Return a request that goes on after the ids which another engine made.

    Raises:
        BadRequest: the request cannot have made them.
    """
    check_token_ids(before, RESUME_HEADER.decode())
    ((_, max_tokens),) = asked.prompts
    if len(before) > max_tokens:
        raise BadRequest(f"The request may have {max_tokens} tokens, not {len(before)}.")
    return replace(asked, before=before)


def check_length(prompt: list[int], *, param: str, max_model_len: int) -> None:
    """Refuse a prompt that no token fits behind."""
    _bounded(prompt, None, param=param, max_model_len=max_model_len)


def check_token_ids(ids: Iterable[int], param: str) -> None:
    """Refuse ids that no tokenizer of this engine makes."""
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise BadRequest(f"`{param}` mixes token ids with other things.", param=param)
        if not 0 <= token < tokens.VOCABULARY:
            raise BadRequest(
                f"Token id {token} is out of vocabulary (0 to {tokens.VOCABULARY - 1}).",
                param=param,
            )


def _generation(request: _Generate, prompts: list[tuple[list[int], int]]) -> GenerationRequest:
    temperature = 1.0 if request.temperature is None else request.temperature
    base = str(request.seed) if temperature > 0 and request.seed is not None else ""
    choices = request.n or 1
    # The first choice is the one that a resumed request goes on with.
    seeds = [base] + [f"{base}/{choice}" if temperature else base for choice in range(1, choices)]
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if not all(stops):
        raise BadRequest("`stop` must not hold an empty text.", param="stop")
    least = request.min_tokens or 0
    if any(least > max_tokens for _, max_tokens in prompts):
        raise BadRequest("`min_tokens` must not exceed `max_tokens`.", param="min_tokens")
    sampling = Sampling(
        ignore_eos=bool(request.ignore_eos),
        min_tokens=least,
        stops=tuple(stops),
        stop_token_ids=frozenset(request.stop_token_ids or ()),
    )
    return GenerationRequest(
        prompts, seeds, sampling, request.cache_salt or "", whole=not request.stream
    )


def _bounded(prompt: list[int], max_tokens: int | None, *, param: str, max_model_len: int) -> int:
    """Return how many tokens may be made; refuse what is longer than the model's context."""
    context = f"This model's maximum context length is {max_model_len} tokens."
    room = max_model_len - len(prompt)
    if room < 1:
        error = BadRequest(
            f"{context} However, your prompt contains {len(prompt)} input tokens, which leaves no "
            "room for output. Please reduce the length of the input prompt.",
            param=param,
        )
    elif max_tokens is not None and max_tokens > room:
        error = BadRequest(
            f"{context} However, you requested {max_tokens} output tokens and your prompt contains "
            f"{len(prompt)} input tokens, for a total of {len(prompt) + max_tokens} tokens. Please "
            "reduce the length of the input prompt or the number of requested output tokens.",
            param=param,
        )
    else:
        return room if max_tokens is None else max_tokens
    error.code = "context_length_exceeded"
    raise error


def _prompt(value: object, param: str) -> list[int]:
    if isinstance(value, str):
        ids = tokens.encode(value)
    elif isinstance(value, list):
        check_token_ids(value, param)
        ids = value
    else:
        raise BadRequest(f"`{param}` must be a text or a list of token ids.", param=param)
    if not ids:
        raise BadRequest(f"`{param}` must not be empty.", param=param)
    return ids


def _content(message: Message, param: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""  # it called tools, or refused
        raise BadRequest(f"`{param}` must be a text or a list of parts.", param=param)
    for index, part in enumerate(content):
        if part.type not in ("text", "input_text") or part.text is None:
            raise BadRequest(
                f"This model reads text only, and `{param}[{index}]` is of type {part.type!r}.",
                param=param,
            )
    return "".join(part.text or "" for part in content)


def _calls(message: Message) -> str:
    return msgspec.json.encode(message.tool_calls).decode() if message.tool_calls else ""


def _refuse_what_is_not_supported(request: _Generate) -> None:
    for name in ("echo", "use_beam_search", "prompt_logprobs"):
        if getattr(request, name):
            raise _unsupported(name)
    if request.response_format and request.response_format.get("type") != "text":
        raise _unsupported("response_format")
    options = request.stream_options
    if options is not None:
        if not request.stream:
            raise BadRequest(
                "Stream options can only be defined when `stream=True`.", param="stream_options"
            )
        if options.continuous_usage_stats:
            raise _unsupported("stream_options.continuous_usage_stats")


def _unsupported(param: str) -> BadRequest:
    return BadRequest(f"`{param}` is not supported by the simulated engine.", param=param)


_MISSING = re.compile(r"Object missing required field `(\w+)`")


def _invalid(text: str) -> BadRequest:
    """Turn msgspec's message, which ends in the place as `$.a[0].b`, into OpenAI's."""
    detail, _, place = text.partition(" - at `")
    param = place.rstrip("`").removeprefix("$").lstrip(".")
    missing = _MISSING.fullmatch(detail)
    if missing:
        param = f"{param}.{missing[1]}".lstrip(".")
        return BadRequest(f"Missing required parameter: `{param}`.", param=param)
    if not param:
        return BadRequest(f"The body is not what this path reads: {detail}.")
    return BadRequest(f"Invalid value for `{param}`: {detail[0].lower()}{detail[1:]}.", param=param)
