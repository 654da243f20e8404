"""Which of vLLM's requests can be carried over to another replica, and how one is continued.

Imports nothing of vLLM: what it works on comes from `vllm_modules`.

A sequence is a function of its token ids only where nothing else in the engine remembers how it
came about. So a request is carried if all its sampling parameters are either named in `CARRIED` or
have vLLM's default: a parameter that a later release adds is refused until it is looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

#: Sampling parameters that may have any value, and why.
CARRIED = frozenset(
    {
        # The next token's distribution comes from the logits alone. With a seed, the noise of the
        # continuation is another one.
        *("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias", "allowed_token_ids"),
        "repetition_penalty",  # counts prompt and output alike, unlike the other penalties
        # Ends: found again in the ids and their text, or counted down.
        *("stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens"),
        # How text is made of ids: the detokenizer gets all of them again.
        *("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"),
        *("output_kind", "stream_interval"),
        # What vLLM derives from these, and how it looks for the prompt in its cache.
        *("output_text_buffer_length", "_all_stop_token_ids", "_eos_token_id"),
        *("skip_clone", "skip_reading_prefix_cache"),
    }
)

#: What the engine remembers of a request besides its tokens, where an operator configured it.
_LOGITS_PROCESSORS = "a logits processor of this engine's own may remember more than token ids"
_WATERMARK = "this engine watermarks its text"
_ENCODER = "this model has an encoder"


def engine_obstacle(config: Any, logits_processors: Any) -> str | None:
    """Return what keeps this engine from carrying over any request; `None`: nothing.

    Args:
        config: vLLM's configuration.
        logits_processors: vLLM's loader of logits processors from plugins and arguments.
    """
    named = config.model_config.logits_processors
    if logits_processors(None if named is None else tuple(named)):
        return _LOGITS_PROCESSORS
    if config.watermark_config is not None:
        return _WATERMARK
    return _ENCODER if config.model_config.is_encoder_decoder else None


def chat_obstacle(request: Any, parser: Any, delegating: Any) -> str | None:
    """Return what in a chat's form keeps it from being carried over.

    Args:
        request: vLLM's decoded request.
        parser: the class of the serving layer's parser of answers; `None`: text passes unparsed.
        delegating: vLLM's parser that has a tool parser and a reasoning parser below it.
    """
    if request.echo:
        return "it echoes the conversation"
    if request.use_beam_search:
        return "it is a beam search"
    if parser is None:
        return None
    if parser.reasoning_parser_cls is not None:
        return "a reasoning parser reads its text"
    # Asked for no tools, only this parser hands the text on as it is.
    unparsed = delegating in parser.__bases__ and not parser.tool_parser_cls.engine_based_streaming
    return None if unparsed and request.tool_choice == "none" else "a tool parser reads its text"


def completion_obstacle(request: Any) -> str | None:
    """Return what in a completion's form keeps it from being carried over."""
    if request.echo:
        return "it echoes the prompt"
    return "it is a beam search" if request.use_beam_search else None


def default_parameters(sampling_params: Any) -> dict[str, Any]:
    """Return the parameters that a carried request leaves alone, with vLLM's defaults."""
    plain = sampling_params()
    names = set(sampling_params.__struct_fields__) - CARRIED
    return {name: getattr(plain, name) for name in sorted(names)}


def parameter_obstacle(params: Any, defaults: Mapping[str, Any]) -> str | None:
    """Return the sampling parameter that keeps a request from being carried over."""
    for name, default in defaults.items():
        value = getattr(params, name)
        if value is not None if default is None else value != default:
            return f"its {name} depends on more than token ids"
    return None


def ids_obstacle(ids: list[int], params: Any, *, vocabulary: int) -> str | None:
    """Return why a request cannot have these output ids."""
    if params.max_tokens is None or len(ids) > params.max_tokens:
        return f"it may have {params.max_tokens} tokens, not {len(ids)}"
    outside = next((token for token in ids if token >= vocabulary), None)
    return None if outside is None else f"token id {outside} is out of vocabulary ({vocabulary})"


def remaining_request(request: Any, ids: list[int]) -> Any:
    """Return the request for the engine's core: it computes `ids` as if they were the prompt."""
    params = copy.copy(request.sampling_params)
    params.max_tokens -= len(ids)
    params.min_tokens = max(0, params.min_tokens - len(ids))
    rest = copy.copy(request)
    rest.prompt_token_ids = [*request.prompt_token_ids, *ids]
    rest.sampling_params = params
    return rest


def replayed(state: Any, params: Any, ids: list[int], reasons: Any) -> Any:
    """Hand a new request's output state the ids that another engine made; return its output.

    Detokenizer, stop strings and the text held back are then as if all ids had just been made here
    in one step. The output is finished if the ids are the whole answer.

    Args:
        state: vLLM's output state of the request, which is of the original prompt.
        params: the request's parameters, not reduced.
        ids: the answer so far.
        reasons: vLLM's finish reasons.
    """
    reason = stop = None
    if ids:
        reason, stop = _end(params, ids, reasons)
        ids = list(ids)
        string = state.detokenizer.update(ids, reason is reasons.STOP)
        if string is not None:
            reason, stop = reasons.STOP, string
    return state.make_request_output(ids, None, reason, stop)


def _end(params: Any, ids: list[int], reasons: Any) -> tuple[Any, int | None]:
    """Return (finish reason, stop reason) after these ids, in the order in which vLLM looks."""
    last = ids[-1]
    if last == params.eos_token_id:
        return reasons.STOP, None
    if last in (params.stop_token_ids or ()):
        return reasons.STOP, last
    return (reasons.LENGTH, None) if len(ids) >= params.max_tokens else (None, None)
