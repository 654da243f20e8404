"""vLLM's errors in OpenAI's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.engines.answer_errors import MAX_MESSAGE_CHARS, translate, translate_event
from tests.engines.vllm_answers import CHAT, COMPLETION, RESPONSES, VALUES, compact, error


def pydantic(kind: str, loc: str) -> bytes:
    message = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{loc}', 'msg': 'no'}}"
    return error(message, "Bad Request", param=loc)


LONG = (
    "This model's maximum context length is 1024 tokens. However, you requested 99 output tokens "
    "and your prompt contains at least 926 input tokens (parameter=input_tokens, value=926)"
)

TRANSLATED = [
    (CHAT, error(LONG, param="input_tokens"), "context_length_exceeded", "messages"),
    (COMPLETION, error(LONG, param="input_text"), "context_length_exceeded", "prompt"),
    (RESPONSES, error(LONG, param="input_tokens"), "context_length_exceeded", "input"),
    (CHAT, error("top_p must be in (0, 1], got 2.0.", param="top_p"), "invalid_value", "top_p"),
    (CHAT, error("n must be at least 1, got 0."), "invalid_value", "n"),
    (CHAT, error("something new"), "invalid_request", None),
    (CHAT, error("tiny is not a multimodal model"), "unsupported_value", "messages"),
    (CHAT, error("Failed to transform json schema into a grammar: x"), "invalid_json_schema",
     "response_format"),
    (RESPONSES, error("Failed to transform json schema into a grammar: x"), "invalid_json_schema",
     "text.format"),
    (CHAT, pydantic("missing", "body.messages"), "missing_required_parameter", "messages"),
    (CHAT, pydantic("extra_forbidden", "body.zz"), "unknown_parameter", "zz"),
    (CHAT, pydantic("float_parsing", "body.temperature"), "invalid_type", "temperature"),
    (CHAT, pydantic("list_type", "body"), "invalid_type", None),
    (CHAT, pydantic("json_invalid", "body.10"), "invalid_request", None),
    (CHAT, pydantic("literal_error", "body.messages.3.SomeParam.role"), "invalid_value",
     "messages[3]"),
    (CHAT, error("x", code="rate_limit_exceeded"), "rate_limit_exceeded", None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "code", "param"), TRANSLATED)
def test_an_error_gets_its_code_and_parameter_and_keeps_its_text(
    path: str, body: bytes, code: str, param: str | None
) -> None:
    status, translated = translate(body, path=path, status=400)
    assert status == 400
    assert json.loads(translated)["error"] == {
        "message": json.loads(body)["error"]["message"],
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


@pytest.mark.parametrize(
    ("status", "body", "answered", "code", "kind"),
    [
        (404, error("no x", param="model", code=404), 404, "model_not_found", "invalid"),
        (404, b'{"detail":"Not Found"}', 404, "unsupported_endpoint", "invalid"),
        (400, error("1 validation error:\n  Unsupported Media Type: Only x"), 415,
         "unsupported_media_type", "invalid"),
        (422, error("x", code=422), 422, "invalid_request", "invalid"),
        (429, error("x", code=429), 429, "overloaded", "invalid"),
        (500, error("x", code=500), 500, "internal_error", "api_error"),
        (503, error("x", code=503), 503, "service_unavailable", "api_error"),
        (500, b"Internal Server Error", 500, "internal_error", "api_error"),
        (400, b"\xff\xfe", 400, "invalid_request", "invalid"),
        (400, b"[" * 5000, 400, "invalid_request", "invalid"),
        (400, b'{"error": 7}', 400, "invalid_request", "invalid"),
    ],
)  # fmt: skip
def test_every_status_has_a_code(
    status: int, body: bytes, answered: int, code: str, kind: str
) -> None:
    got, translated = translate(body, path=CHAT, status=status)
    told = json.loads(translated)["error"]
    assert (got, told["code"]) == (answered, code)
    assert told["type"].startswith(kind)
    assert isinstance(told["message"], str)


@given(VALUES, st.sampled_from([400, 404, 422, 500, 503]))
def test_any_error_becomes_one_of_openais_shape(value: Any, status: int) -> None:
    for body in (compact(value), compact({"error": value})):
        told = json.loads(translate(body, path=CHAT, status=status)[1])["error"]
        assert told.keys() == {"message", "type", "param", "code"}
        assert isinstance(told["code"], str)


@pytest.mark.parametrize(
    "echoed", ["x" * 10_000_000, "\N{GRINNING FACE}" * 1_000_000, "\0" * 99999]
)
def test_u01_an_error_is_bounded_whatever_it_echoes(echoed: str) -> None:
    """U01: a bad request echoed its whole input; neighbours: wide and escaped characters."""
    _, body = translate(error(f"bad value {echoed}"), path=CHAT, status=400)
    assert len(body) <= 64 * 1024
    message = json.loads(body)["error"]["message"]
    assert message.startswith("bad value ")
    assert f"({len(echoed) + 10 - MAX_MESSAGE_CHARS} more characters)" in message


def test_an_error_event_takes_its_status_from_its_code() -> None:
    for code, status in ((400, 400), (503, 503), (7, 500), ("word", 500), (None, 500)):
        got, told = translate_event(error("died", code=code), path=CHAT)
        assert got == status
        assert json.loads(told)["error"]["message"] == "died"


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("'list' object has no attribute 'get'", 400),
        ("'int' object is not iterable", 400),
        ("'str' object does not support item assignment", 400),
        ("'function'", 400),
        ("'EngineCore' object has no attribute 'get'", 500),
        ("'cmpl-1234'", 500),
        ("EngineCore encountered an issue.", 500),
    ],
)
def test_a_500_that_the_request_caused_is_a_400(message: str, status: int) -> None:
    got, told = translate(error(message, code=500), path=CHAT, status=500)
    assert got == status
    expected = ("internal_error", "api_error")
    if status == 400:
        expected = ("invalid_request", "invalid_request_error")
    assert (json.loads(told)["error"]["code"], json.loads(told)["error"]["type"]) == expected
    assert json.loads(told)["error"]["message"] == message
