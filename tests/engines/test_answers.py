"""What is done to an engine's answers: nulls out, and never a byte of a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given

from aibrix_ray.asgi import Message, Receive, Scope, Send
from aibrix_ray.config.engine import SimulatedEngineConfig, VllmEngineConfig
from aibrix_ray.engines.answer_nulls import (
    ABSENT,
    FIRST_PIECE,
    clean_choices,
    clean_response,
    clean_response_event,
)
from aibrix_ray.engines.answers import CleanAnswers, answers_of
from tests.engines.vllm_answers import (
    CHAT,
    COMPLETION,
    RESPONSES,
    TEXTS,
    VALUES,
    compact,
    error,
)


def without_nulls(value: Any) -> Any:
    """Take the nulls out the slow way: any but an object's first member, which keeps its comma."""
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_nulls(each)
        for place, (key, each) in enumerate(value.items())
        if place == 0 or each is not None or key not in ABSENT
    }


@given(VALUES)
def test_bytes_are_cleaned_as_the_decoded_value_would_be(value: Any) -> None:
    cleaned = clean_choices(compact(value))
    assert json.loads(cleaned) == without_refusals(without_nulls(value))


def without_refusals(value: Any) -> Any:
    """Add what `clean_choices` adds to the log probabilities of a chat."""
    if isinstance(value, list):
        return [without_refusals(each) for each in value]
    if not isinstance(value, dict):
        return value
    changed = {}
    for place, (key, each) in enumerate(value.items()):
        each = without_refusals(each)
        if place and key == "logprobs" and isinstance(each, dict):
            first = next(iter(each), None)
            if first == "content" and isinstance(each[first], list):
                each = {"refusal": None} | each
        changed[key] = each
    return changed


@given(VALUES)
def test_the_pieces_of_a_tool_call_are_cleaned_likewise(value: Any) -> None:
    delta = {"tool_calls": [value]}
    expected = without_pieces(without_refusals(without_nulls(delta)))
    assert json.loads(clean_choices(compact(delta))) == expected


def without_pieces(value: Any) -> Any:
    if isinstance(value, list):
        return [without_pieces(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_pieces(each)
        for key, each in value.items()
        if each is not None or key not in FIRST_PIECE
    }


@given(TEXTS, TEXTS)
def test_a_text_keeps_its_bytes(content: str, arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": content, "audio": None, "tool_calls": [call]}
    body = compact({"id": "x", "choices": [{"index": 0, "message": message, "token_ids": None}]})
    cleaned = clean_choices(body)
    assert compact(content) in cleaned
    assert compact(arguments) in cleaned
    assert clean_choices(cleaned) == cleaned


def test_what_openai_sends_as_null_stays_null() -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": None, "audio": None},
        "logprobs": None,
        "finish_reason": None,
        "stop_reason": None,
    }
    cleaned = json.loads(clean_choices(compact({"id": "x", "choices": [choice]})))
    assert cleaned["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": None},
        "logprobs": None,
        "finish_reason": None,
    }


@pytest.mark.parametrize("name", ABSENT)
def test_an_extension_that_was_asked_for_stays(name: str) -> None:
    body = compact({"id": "x", name: [1, {"a": None}], "choices": []})
    assert clean_choices(body) == body


USERS = {"type": "object", "text": None, "user": None, "properties": {"namespace": None}}


def response(**more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "user": None,
        "text": {"format": {"type": "json_schema", "description": None, "schema": USERS}},
        "usage": None,
        "metadata": None,
        "tools": [{"type": "function", "parameters": USERS, "async": None, "strict": None}],
        "output": [
            {"type": "function_call", "namespace": None, "arguments": '{"user":null}'},
            {
                "type": "message",
                "content": [{"type": "output_text", "text": "x", "logprobs": None}],
            },
            7,
        ],
        "kv_transfer_params": None,
        **more,
    }


CLEANED = {
    "id": "resp_1",
    "text": {"format": {"type": "json_schema", "schema": USERS}},
    "metadata": None,
    "tools": [{"type": "function", "parameters": USERS, "strict": None}],
    "output": [
        {"type": "function_call", "arguments": '{"user":null}'},
        {
            "type": "message",
            "content": [{"type": "output_text", "text": "x", "logprobs": [], "annotations": []}],
        },
        7,
    ],
    "error": None,
}


def test_a_response_is_cleaned_and_the_users_schemas_are_not() -> None:
    assert json.loads(clean_response(compact(response()))) == CLEANED
    assert json.loads(clean_response(compact(response(error={"code": "x"}))))["error"] == {
        "code": "x"
    }


def test_the_events_of_a_response_are_cleaned() -> None:
    event = {"response": response(), "sequence_number": 0, "type": "response.created"}
    cleaned = clean_response_event(b"event: response.created\ndata: " + compact(event) + b"\n\n")
    head, _, data = cleaned.partition(b"\ndata: ")
    assert head == b"event: response.created"
    assert data.endswith(b"}\n\n")
    assert json.loads(data) == {**event, "response": CLEANED}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"data: [DONE]\n\n",
        b"data: {",
        b'data: {"a":1}\n\ndata: {"b":2}\n\n',
        b'event: response.output_text.delta\ndata: {"delta":"user"}\n\n',
        b"data: {no json}\n\n",
        b'data: {"response":7,"item":null,"part":[{}]}\n\n',
        b": a comment\n\n",
    ],
)
def test_what_is_no_event_of_a_response_passes_as_it_is(body: bytes) -> None:
    assert clean_response_event(body) == body


@given(VALUES)
def test_no_response_is_ever_broken(value: Any) -> None:
    body = compact(value)
    json.loads(clean_response(body))
    event = b"event: x\ndata: " + body + b"\n\n"
    cleaned = clean_response_event(event)
    assert cleaned.startswith(b"event: x\ndata: ")
    assert cleaned.endswith(b"\n\n")


async def answered(
    path: str, status: int, kind: bytes, bodies: Sequence[bytes], **scope: Any
) -> list[Message]:
    """Return the messages that come out for an engine's answer; one by one, as they went in."""
    sent: list[Message] = []

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        length = str(sum(map(len, bodies))).encode()
        headers = [(b"content-type", kind), (b"content-length", length), (b"x-other", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for place, body in enumerate(bodies):
            more = place + 1 < len(bodies)
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        sent.append(message)

    await CleanAnswers(engine)({"type": "http", "path": path} | scope, receive, send)
    return sent


JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


async def test_the_length_is_that_of_the_cleaned_body() -> None:
    start, body = await answered(CHAT, 200, JSON, [b'{"id":"x","audio":null}'])
    assert body["body"] == b'{"id":"x"}'
    assert dict(start["headers"])[b"content-length"] == b"10"
    assert dict(start["headers"])[b"x-other"] == b"1"


async def test_an_error_of_plain_text_becomes_json() -> None:
    start, body = await answered(CHAT, 500, b"text/plain", [b"Internal Server Error"])
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"]) == (500, JSON)
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert json.loads(body["body"])["error"]["code"] == "internal_error"


async def test_each_message_of_a_stream_stays_one_message_and_is_sent_at_once() -> None:
    events = [b'data: {"id":"x","token_ids":null}\n\n', b"data: [DONE]\n\n", b""]
    sent = await answered(CHAT, 200, EVENTS, events)
    assert [message.get("body") for message in sent] == [
        None,
        b'data: {"id":"x"}\n\n',
        b"data: [DONE]\n\n",
        b"",
    ]


DIED = b"data: " + error("died", "InternalServerError", code=500) + b"\n\n"
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/audio/transcriptions"])
async def test_an_error_within_a_stream_is_named_too(path: str) -> None:
    sent = await answered(path, 200, EVENTS, [b": first\n\n", DIED + DONE, b""])
    assert sent[0]["status"] == 200
    data, _, rest = sent[2]["body"].removeprefix(b"data: ").partition(b"\n\n")
    assert json.loads(data)["error"]["code"] == "internal_error"
    assert rest == DONE


@pytest.mark.parametrize("bodies", [[DIED + DONE, b""], [DIED, DONE, b""], [DIED]])
@pytest.mark.parametrize("path", [CHAT, COMPLETION, "/v1/audio/transcriptions"])
async def test_u10_a_stream_that_begins_with_its_error_is_no_stream(
    path: str, bodies: list[bytes]
) -> None:
    """U10: an error before the first token came as 200 with the error inside SSE."""
    start, body = await answered(path, 200, EVENTS, bodies)
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"]) == (500, JSON)
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert json.loads(body["body"])["error"]["message"] == "died"
    assert not body.get("more_body", False)


@pytest.mark.parametrize(
    ("path", "status", "kind", "bodies"),
    [
        ("/tokenize", 200, JSON, [b'{"count":1,"token_ids":null}']),
        ("/v1/messages", 200, JSON, [b'{"id":"x","stop_reason":null}']),
        ("/v1/messages", 404, JSON, [b'{"type":"error","error":{}}']),
        ("/v1/messages", 200, b"text/event-stream", [b'data: {"a":1,"usage":null}\n\n', b""]),
        (CHAT, 200, JSON, [b'{"id":"x"', b',"audio":null}']),
        (CHAT, 200, b"audio/wav", [b',"audio":null']),
    ],
)
async def test_everything_else_passes_as_it_is(
    path: str, status: int, kind: bytes, bodies: list[bytes]
) -> None:
    sent = await answered(path, status, kind, bodies)
    assert [message["body"] for message in sent[1:]] == bodies
    assert dict(sent[0]["headers"])[b"content-length"] == str(sum(map(len, bodies))).encode()


@pytest.mark.parametrize(
    ("config", "cleaned"),
    [
        (VllmEngineConfig(), True),
        (VllmEngineConfig(clean_answers=False), False),
        (SimulatedEngineConfig(), False),
    ],
)
def test_the_configuration_says_whether(
    config: VllmEngineConfig | SimulatedEngineConfig, cleaned: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    wrap: Callable[..., Any] = answers_of
    assert isinstance(wrap(app, config), CleanAnswers) == cleaned
