"""Answers against OpenAI's published document: whole ones, and each event of each stream."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.conformance.document import deviations, event_schema
from tests.conformance.requests import (
    CHAT,
    COMPLETION,
    FUNCTION,
    NAMED,
    RESPONSES,
    TOOL,
    chat,
    completion,
    response,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow]

FORMAT = {
    "type": "json_schema",
    "name": "answer",
    "schema": {
        "type": "object",
        "properties": {"yes": {"type": "boolean", "default": None}},
        "required": ["yes"],
        "additionalProperties": False,
    },
}
TOOLS: dict[str, Any] = {"tools": [TOOL], "max_tokens": 90}
FLAT_TOOL = {"type": "function", **FUNCTION}
SCHEMAS = {
    CHAT: ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    COMPLETION: ("CreateCompletionResponse", "CreateCompletionResponse"),
    RESPONSES: ("Response", ""),
}

ASKED = [
    pytest.param(CHAT, chat(), id="chat"),
    pytest.param(CHAT, chat(n=2, temperature=1.0), id="chat: n"),
    pytest.param(CHAT, chat(logprobs=True, top_logprobs=2), id="chat: logprobs"),
    pytest.param(CHAT, chat(tool_choice="auto", **TOOLS), id="chat: auto"),
    pytest.param(CHAT, chat(tool_choice=NAMED, **TOOLS), id="chat: named"),
    pytest.param(CHAT, chat(tool_choice="required", **TOOLS), id="chat: required"),
    pytest.param(CHAT, chat(stop=["a"], return_token_ids=True), id="chat: extensions"),
    pytest.param(COMPLETION, completion(), id="completion"),
    pytest.param(COMPLETION, completion(["a", "b"], n=2), id="completion: two by two"),
    pytest.param(COMPLETION, completion(logprobs=2), id="completion: logprobs"),
    pytest.param(COMPLETION, completion(logprobs=1, echo=True), id="completion: echo"),
    pytest.param(RESPONSES, response(), id="response"),
    pytest.param(
        RESPONSES,
        response(metadata={"a": "b"}, user="u", instructions="Be short."),
        id="response: all told",
    ),
    pytest.param(RESPONSES, response(text={"format": FORMAT}), id="response: schema"),
    pytest.param(
        RESPONSES,
        response(tools=[FLAT_TOOL], tool_choice="required", max_output_tokens=90),
        id="response: tools",
    ),
    pytest.param(
        RESPONSES,
        response(include=["message.output_text.logprobs"], top_logprobs=1),
        id="response: logprobs",
    ),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_whole_answer_is_what_the_document_says(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert deviations(SCHEMAS[path][0], answer.json()) == []


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_each_event_of_a_stream_is_what_the_document_says(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    body = body | {"stream": True}
    if path != RESPONSES:
        body["stream_options"] = {"include_usage": True}
    events = events_of(await http.post(path, json=body))
    assert len(events) > 2
    for event in events:
        schema = SCHEMAS[path][1] or event_schema(event["type"])
        assert deviations(schema, event, chunk=True) == [], event


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the data of an event stream, up to its `[DONE]` where it has one."""
    assert answer.status_code == 200, answer.text
    lines = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    data = [line.removeprefix("data: ") for line in lines]
    if data[-1] == "[DONE]":
        data.pop()
    return [json.loads(each) for each in data]


async def test_the_list_of_models_is_what_the_document_says(http: httpx.AsyncClient) -> None:
    models = (await http.get("/v1/models")).json()
    assert {model["id"] for model in models["data"]} == {"tiny", "alias"}
    assert deviations("ListModelsResponse", models) == []
    assert deviations("Model", (await http.get("/v1/models/alias")).json()) == []


async def test_an_error_is_what_the_document_says(http: httpx.AsyncClient) -> None:
    for path, body in ((CHAT, chat(top_p=2.0)), (COMPLETION, {}), (RESPONSES, response(7))):
        answer = await http.post(path, json=body)
        assert deviations("ErrorResponse", answer.json()) == []
