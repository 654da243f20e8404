"""vLLM's error answers in OpenAI's words: codes that are words, parameters as a request has them.

What vLLM says stays what it says, up to a length: only `type`, `param` and `code` are translated. A
text that is not known to us gets the general code of its status, never a wrong one. Pure.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from aibrix_ray.errors import (
    ApiError,
    BadRequest,
    ClientError,
    ModelNotFound,
    NotFound,
    Overloaded,
    PayloadTooLarge,
)

#: Of an error's text a client gets so many characters; vLLM quotes what it was sent.
MAX_MESSAGE_CHARS = 8192

_CODES = {
    400: BadRequest.code,
    401: "invalid_api_key",
    403: "permission_denied",
    404: NotFound.code,
    409: "conflict",
    413: PayloadTooLarge.code,
    415: "unsupported_media_type",
    422: BadRequest.code,
    429: Overloaded.code,
    501: "unsupported_value",
    503: "service_unavailable",
}

#: The field that holds the prompt, by path.
_PROMPTS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
    "/tokenize": "prompt",
}
_PROMPT = "<prompt>"
_FORMAT = "<format>"

#: What vLLM calls a parameter that no request has → what the request calls it.
_PARAMS = {
    "input_tokens": _PROMPT,
    "input_text": _PROMPT,
    "prompt_token_ids": _PROMPT,
    "response_id": "previous_response_id",
    "structured_outputs": _FORMAT,
}

#: Said in the text → code, and the parameter where vLLM names none.
_SAID: tuple[tuple[re.Pattern[str], str, str | None], ...] = tuple(
    (re.compile(pattern), code, param)
    for pattern, code, param in (
        (r"maximum context length|longer than the maximum", "context_length_exceeded", _PROMPT),
        (r"^Response with id .* not found", "previous_response_not_found", None),
        (
            r"^Failed to transform json schema|[Ii]nvalid JSON schema",
            "invalid_json_schema",
            _FORMAT,
        ),
        (r"^Failed to (?:transform|convert)", "invalid_value", _FORMAT),
        (r"^Unsupported Media Type|Unsupported Media Type: ", "unsupported_media_type", None),
        (r"not a multimodal model|At most 0 (?:image|audio|video)", "unsupported_value", _PROMPT),
        (r"^suffix is only supported", "unsupported_parameter", "suffix"),
        (r"empty conversation|at least one prompt", "invalid_value", _PROMPT),
        (r"^Token id \d+ is out of vocabulary|^TextEncodeInput", "invalid_value", _PROMPT),
    )
)

#: pydantic's word for what is wrong with a value → OpenAI's.
_KINDS = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "string_too_long": "string_above_max_length",
    "too_long": "array_above_max_length",
    "json_invalid": BadRequest.code,
}
_KIND = re.compile(r"\A\d+ validation errors?:\n +\{'type': '(\w+)'")
_SUBJECT = re.compile(
    r"\A`?(n|stop|seed|temperature|top_p|top_k|min_p|presence_penalty|frequency_penalty"
    r"|repetition_penalty|logprobs|top_logprobs|max_tokens|min_tokens|max_completion_tokens"
    r"|max_output_tokens|logit_bias|tools|tool_choice|messages|prompt|input|best_of)`? "
    r"(?:must|cannot|should|is|are)\b"
)
#: vLLM looks at a body before it validates it. What Python then says of a value of another type, or
#: of a member that is missing, comes as a 500, and would be held against the replica.
_UNVALIDATED = re.compile(
    r"'(?:dict|list|str|int|float|bool|NoneType)' object "
    r"(?:has no attribute '\w+'|is not \w+|does not support .*)|'[a-z_]+'"
)
_FIELD = re.compile(r"[a-z][a-z0-9_]*")


def translate(body: bytes, *, path: str, status: int) -> tuple[int, bytes]:
    """Return status and JSON of an error answer, in OpenAI's shape.

    `body` may be anything: vLLM's error, its framework's, or no JSON at all.
    """
    told = _told(body)
    message = told.get("message")
    if not isinstance(message, str) or not message:
        return status, _encode(*_unsaid(body, path, status))
    if status == 500 and _UNVALIDATED.fullmatch(message):
        status = 400
    code, param = _code(told, message, path, status)
    if code == "unsupported_media_type":
        status = 415
    kind = ClientError.type if status < 500 else ApiError.type
    return status, _encode(message, kind, param, code)


def translate_event(data: bytes, *, path: str) -> tuple[int, bytes]:
    """Return the same of an error event of a stream; its status is the one that it names."""
    code = _told(data).get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 500
    return translate(data, path=path, status=status)


def _told(body: bytes) -> dict[str, Any]:
    try:
        told = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    error = told.get("error") if isinstance(told, dict) else None
    return error if isinstance(error, dict) else {}


def _unsaid(body: bytes, path: str, status: int) -> tuple[str, str, str | None, str]:
    """Return the error of an answer that is none of vLLM's own: its framework's, or a text."""
    if status == 404:
        # vLLM serves the paths of what the model can do, and no others.
        text = f"This model does not serve {path}"
        return text, ClientError.type, "model", "unsupported_endpoint"
    if status >= 500:
        return "the engine failed; see its log", ApiError.type, None, ApiError.code
    said = body[:200].decode("utf-8", "replace")
    text = f"The engine refused the request with status {status}: {said}"
    return text, ClientError.type, None, _CODES.get(status, ClientError.code)


def _encode(message: str, kind: str, param: str | None, code: str) -> bytes:
    if len(message) > MAX_MESSAGE_CHARS:
        over = len(message) - MAX_MESSAGE_CHARS
        message = f"{message[:MAX_MESSAGE_CHARS]}... ({over} more characters)"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def _code(told: dict[str, Any], message: str, path: str, status: int) -> tuple[str, str | None]:
    """Return code and parameter."""
    given, param = told.get("code"), told.get("param")
    param = _param(param) if isinstance(param, str) else None
    if isinstance(given, str) and given:
        return given, param
    if status >= 500:
        return _CODES.get(status, ApiError.code), param
    if status == 404 and param == "model":
        return ModelNotFound.code, param
    code = _CODES.get(status, ClientError.code)
    kind = _KIND.match(message)
    if kind is not None:
        code = _of_kind(kind[1])
    elif (said := next((s for s in _SAID if s[0].search(message)), None)) is not None:
        code, param = said[1], param or said[2]
    elif status == 400:
        subject = _SUBJECT.match(message)
        param = param or (subject[1] if subject else None)
        code = "invalid_value" if param else code
    return code, _named(param, path)


def _of_kind(kind: str) -> str:
    if kind.endswith(("_type", "_parsing")):
        return "invalid_type"
    return _KINDS.get(kind, "invalid_value")


def _named(param: str | None, path: str) -> str | None:
    """Return the parameter as a request on this path has it."""
    if param == _PROMPT:
        return _PROMPTS.get(path)
    if param == _FORMAT:
        return "text.format" if path == "/v1/responses" else "response_format"
    return param


def _param(param: str) -> str | None:
    """Return `messages[0].role` of `body.messages.0.SomeUnionBranch.role`, as far as it is sure."""
    first, *rest = param.removeprefix("body.").split(".")
    if param == "body" or not _FIELD.fullmatch(first):
        return None  # of the body as a whole, or a place in text that is no JSON
    named = _PARAMS.get(first, first)
    for part in rest:
        if part.isdecimal():
            named += f"[{part}]"
        elif _FIELD.fullmatch(part):
            named += f".{part}"
        else:
            break  # a branch of a union: what follows belongs to one guess of several
    return named
