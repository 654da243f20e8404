"""Takes out of an answer the nulls where OpenAI's document says "absent" or "an object". Pure.

Chats and completions are cleaned as bytes, without decoding: within a string of JSON a quote is
escaped, so `,"name":null` can stand nowhere but between the members of an object. Their objects
hold nothing of the user's own (a tool call's arguments are a string), so a name suffices. An answer
of `/v1/responses` repeats the user's tools and schemas, which must not be touched: there each level
is decoded, and what is the user's stays undecoded bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

#: Extensions of vLLM that are null unless asked for, and fields that OpenAI leaves out.
#: Kept: `refusal`, `content`, `logprobs`, `finish_reason`, which OpenAI sends as null.
ABSENT = (
    "annotations",
    "audio",
    "completion_tokens_details",
    "created_cache_tokens",
    "ec_transfer_params",
    "function_call",
    "kv_transfer_params",
    "metrics",
    "multimodal_tokens",
    "prompt_logprobs",
    "prompt_text",
    "prompt_token_ids",
    "prompt_tokens_details",
    "reasoning",
    "routed_experts",
    "service_tier",
    "stop_reason",
    "system_fingerprint",
    "token_ids",
)
#: Of a tool call in a stream, what only its first piece has; these may open their object.
FIRST_PIECE = ("arguments", "id", "name", "type")


def _any(names: Iterable[str]) -> bytes:
    return b"(?:%b)" % "|".join(names).encode()


_ABSENT = re.compile(rb',"%b":null' % _any(ABSENT)).sub
_FIRST_PIECE = re.compile(rb'(?:"%b":null,?)+|,"%b":null' % ((_any(FIRST_PIECE),) * 2)).sub
_TOOL_CALLS = b'"tool_calls":['
_LOGPROBS = b',"logprobs":{"content":['
_LOGPROBS_WHOLE = b',"logprobs":{"refusal":null,"content":['

_NULL = msgspec.Raw(b"null")
_OUTPUT_TEXT = msgspec.Raw(b'"output_text"')
_DELTA = b"event: response.output_text.delta\n"

_Fields = dict[str, msgspec.Raw]
_FIELDS = msgspec.json.Decoder(_Fields)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])

#: Of a response, what may not be null and may be absent.
_RESPONSE = frozenset(
    {
        "user",
        "text",
        "usage",
        "safety_identifier",
        "prompt_cache_key",
        "kv_transfer_params",
        "ec_transfer_params",
        "input_messages",
        "output_messages",
    }
)
#: Of a tool or an output item the same; the user's own JSON lies a level deeper.
_PART = frozenset(
    {
        "allowed_callers",
        "async",
        "caller",
        "content",
        "defer_loading",
        "id",
        "namespace",
        "output_schema",
        "status",
    }
)


def clean_choices(body: bytes) -> bytes:
    """Return a chat's or a completion's answer, or any whole events of its stream."""
    body = _ABSENT(b"", body).replace(_LOGPROBS, _LOGPROBS_WHOLE)
    return _FIRST_PIECE(b"", body) if _TOOL_CALLS in body else body


def clean_response(body: bytes) -> bytes:
    """Return an answer of `/v1/responses`; what cannot be decoded stays as it is."""
    return _edited(body, _response)


def clean_response_event(body: bytes) -> bytes:
    """Return one event of a stream of `/v1/responses`; a piece of text is passed on undecoded."""
    if body.startswith(_DELTA):
        return body
    head, found, rest = body.partition(b"data: {")
    data, end, more = rest.partition(b"\n\n")
    if not found or not end or more:
        return body
    return head + b"data: " + _edited(b"{" + data, _event) + end


def _edited(body: bytes, edit: Callable[[_Fields], None]) -> bytes:
    try:
        fields = _FIELDS.decode(body)
        edit(fields)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
    return msgspec.json.encode(fields)


def _event(event: _Fields) -> None:
    _change(event, "response", _response)
    _change(event, "item", _item)
    _change(event, "part", _content)


def _response(response: _Fields) -> None:
    _drop(response, _RESPONSE)
    response.setdefault("error", _NULL)
    _change_each(response, "output", _item)
    _change_each(response, "tools", _part)
    _change(response, "text", _text)


def _item(item: _Fields) -> None:
    _part(item)
    _change_each(item, "content", _content)


def _content(content: _Fields) -> None:
    if content.get("type") == _OUTPUT_TEXT:
        for name in ("annotations", "logprobs"):
            if content.get(name, _NULL) == _NULL:
                content[name] = msgspec.Raw(b"[]")


def _text(text: _Fields) -> None:
    _drop(text, ("format", "verbosity"))
    _change(text, "format", lambda form: _drop(form, ("description",)))


def _part(part: _Fields) -> None:
    _drop(part, _PART)


def _drop(fields: _Fields, names: Iterable[str]) -> None:
    for name in names:
        if fields.get(name) == _NULL:
            del fields[name]


def _change(fields: _Fields, name: str, edit: Callable[[_Fields], None]) -> None:
    raw = fields.get(name)
    if raw is not None and _opens(raw, b"{"):
        inner = _FIELDS.decode(raw)
        edit(inner)
        fields[name] = msgspec.Raw(msgspec.json.encode(inner))


def _change_each(fields: _Fields, name: str, edit: Callable[[_Fields], None]) -> None:
    raw = fields.get(name)
    if raw is None or not _opens(raw, b"["):
        return
    parts = []
    for part in _LIST.decode(raw):
        if _opens(part, b"{"):
            inner = _FIELDS.decode(part)
            edit(inner)
            part = msgspec.Raw(msgspec.json.encode(inner))
        parts.append(part)
    fields[name] = msgspec.Raw(msgspec.json.encode(parts))


def _opens(raw: msgspec.Raw, bracket: bytes) -> bool:
    return bytes(memoryview(raw)[:1]) == bracket
