"""What the official client is told when something is wrong: class, code, parameter, text.

The statuses that neither gateway nor engine answer by themselves come from a backend that says so.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError

from aibrix_ray.asgi import HttpServer, Receive, Scope, Send, unix_socket
from aibrix_ray.dataplane import Address
from aibrix_ray.engines.answers import CleanAnswers
from tests.conformance.requests import (
    CHAT,
    COMPLETION,
    MODEL,
    QUESTION,
    RESPONSES,
    chat,
    completion,
    response,
)
from tests.dataplane.gateways import Gateway
from tests.engines.conftest import CONTEXT, short_folder

pytestmark = [pytest.mark.engine, pytest.mark.slow]

LIMIT_BYTES = 64 * 1024
#: A replica that does nothing else for so long fails its health checks.
STALL_S = 10.0
JSON = {"content-type": "application/json"}
LONG = "word " * CONTEXT
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "none"}}}
NO_TOOL = {"type": "function", "function": {"name": "unknown"}}

REFUSED: list[tuple[str, dict[str, Any], str, str | None]] = [
    (CHAT, chat(LONG), "context_length_exceeded", "messages"),
    (CHAT, chat(LONG, stream=True), "context_length_exceeded", "messages"),
    (COMPLETION, completion(LONG), "context_length_exceeded", "prompt"),
    (RESPONSES, response(LONG), "context_length_exceeded", "input"),
    (CHAT, chat(max_tokens=CONTEXT * 2), "invalid_value", "max_tokens"),
    (CHAT, chat(top_p=2.0), "invalid_value", "top_p"),
    (CHAT, chat(temperature=-1), "invalid_value", "temperature"),
    (CHAT, chat(temperature="hot"), "invalid_type", "temperature"),
    (CHAT, chat(n=0), "invalid_value", "n"),
    (CHAT, chat(logit_bias={"999999": 1}), "invalid_value", "logit_bias"),
    (CHAT, chat(logprobs=True, top_logprobs=999), "invalid_value", "logprobs"),
    (CHAT, chat(response_format={"type": "xml"}), "invalid_value", "response_format.type"),
    (CHAT, chat(response_format=BAD_SCHEMA), "invalid_json_schema", "response_format"),
    (CHAT, chat(tool_choice="required"), "invalid_value", "tool_choice"),
    (CHAT, {"model": MODEL}, "missing_required_parameter", "messages"),
    (CHAT, {"model": MODEL, "messages": []}, "invalid_value", "messages"),
    (COMPLETION, completion(suffix="x"), "unsupported_parameter", "suffix"),
    (COMPLETION, completion(""), "invalid_value", "prompt"),
]


@pytest.mark.parametrize(("path", "body", "code", "param"), REFUSED)
async def test_an_engines_refusal_names_code_and_parameter(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], code: str, param: str | None
) -> None:
    """U03, U10: the engine's 400 as JSON, its text unwrapped; a stream's too, and no SSE."""
    answer = await http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert error["type"] == "invalid_request_error"
    assert '"error"' not in error["message"]


async def test_the_official_client_reads_them(client: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(**chat(LONG))
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"
    assert refused.value.type == "invalid_request_error"
    assert str(CONTEXT) in refused.value.message


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["tinny", "TINY", "x" * 5000])
async def test_u02_an_unknown_model_is_a_404(
    client: AsyncOpenAI, streamed: bool, name: str
) -> None:
    """U02, U10: a wrong model's name; neighbours: another case, a very long one; streams."""
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(**chat() | {"model": name, "stream": streamed})
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert refused.value.response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("top_p", [2.0, -0.5, 0])
@pytest.mark.parametrize("streamed", [False, True])
async def test_u03_the_engines_own_words_arrive(
    client: AsyncOpenAI, top_p: float, streamed: bool
) -> None:
    """U03: `top_p: 2.0`; neighbours: negative, zero; none of it wrapped into a text."""
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(**chat(top_p=top_p, stream=streamed))
    body = refused.value.body
    assert isinstance(body, dict)
    assert body["message"].startswith(f"top_p must be in (0, 1], got {float(top_p)}.")
    assert body["param"] == "top_p"
    assert "{" not in body["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, response([{"type": "x"}] * 10_000)),
        (RESPONSES, response([7] * 10_000)),
        (RESPONSES, response([{"role": "user", "content": [7] * 1000}])),
        (CHAT, {"model": MODEL, "messages": [7] * 10_000}),
        (CHAT, {"model": MODEL, "messages": [{"role": 5, "content": "x" * 1000}] * 1000}),
        (CHAT, chat(tools=[{"type": "function"}] * 1000)),
        (COMPLETION, completion([{"a": "x" * 100}] * 1000)),
        (CHAT, chat(temperature="x" * 1_000_000)),
    ],
)
async def test_u01_a_refusal_is_small_whatever_was_sent(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """U01: many wrong items; neighbours: other fields, other paths, one huge value."""
    answer = await http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.elapsed.total_seconds() < STALL_S
    assert len(answer.content) <= LIMIT_BYTES
    message = answer.json()["error"]["message"]
    assert message.count("'loc'") <= 10
    assert "x" * 300 not in message


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETION, completion([10**9]), "prompt"),
        (RESPONSES, response(LONG), "input"),
        (COMPLETION, completion(LONG), "prompt"),
    ],
)
async def test_u10_what_is_wrong_before_the_first_token_is_no_stream(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    """U10: a stream with a prompt that is too long; neighbours: no such token, other paths."""
    answer = await http.post(path, json=body | {"stream": True})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["param"] == param


@pytest.mark.xfail(reason="vLLM 0.32 fails an assertion of its own: 500", strict=True)
async def test_an_empty_prompt_is_echoed(http: httpx.AsyncClient) -> None:
    answer = await http.post(COMPLETION, json=completion(["a", ""], echo=True))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"structured_outputs": []}),
        (COMPLETION, {"structured_outputs": "x"}),
        (CHAT, {"tools": [{"type": "function"}], "tool_choice": {"type": "function"}}),
    ],
)
async def test_what_vllm_stumbles_over_is_the_requests_fault(
    http: httpx.AsyncClient, path: str, more: dict[str, Any]
) -> None:
    body = chat(**more) if path == CHAT else completion(**more)
    answer = await http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_request"),
        (b'{"model": ', "invalid_request"),
        (b"[]", "invalid_request"),
        (b"[" * 100_000, "invalid_request"),
        (b'{"model": "tiny", "messages": \xff}', "invalid_request"),
        (b'{"model": "tiny", "temperature": NaN}', "invalid_request"),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(
    http: httpx.AsyncClient, content: bytes, code: str
) -> None:
    answer = await http.post(CHAT, content=content, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert len(answer.content) <= LIMIT_BYTES


async def test_another_content_type_is_a_415(http: httpx.AsyncClient) -> None:
    body = json.dumps(chat())
    answer = await http.post(CHAT, content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


async def test_another_method_is_a_405_and_another_path_a_404(http: httpx.AsyncClient) -> None:
    answer = await http.get(CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    answer = await http.post("/v1/files", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        '{{"model": "other", "model": "{0}", {1}}}',
        '{{"model": "{0}", {1}, "model": "{0}"}}',
        '{{"model": 7, {1}, "\\u006dodel": "{0}"}}',
    ],
)
async def test_u05_the_last_of_two_models_is_checked_and_dispatched(
    http: httpx.AsyncClient, body: str
) -> None:
    """U05: `model` twice; neighbours: the same twice, the second one spelled with an escape."""
    rest = json.dumps(chat())[1:-1].replace('"model": "tiny", ', "")
    answer = await http.post(CHAT, content=body.format(MODEL, rest).encode(), headers=JSON)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == MODEL


@pytest.mark.parametrize("last", ["other", "TINY"])
async def test_u05_an_allowed_model_first_opens_nothing(http: httpx.AsyncClient, last: str) -> None:
    """U05: the other way round, the unknown model counts."""
    body = json.dumps(chat())[:-1] + f', "model": "{last}"}}'
    answer = await http.post(CHAT, content=body.encode(), headers=JSON)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_u05_neither_query_nor_header_names_the_model(http: httpx.AsyncClient) -> None:
    """U05: `?model=` and a header `model`; the body's is the one."""
    answer = await http.post(f"{CHAT}?model=other", json=chat(), headers={"model": "other"})
    assert answer.status_code == 200
    assert answer.json()["model"] == MODEL


@pytest.mark.parametrize("stream", [False, True])
async def test_u05_an_alias_twice_reaches_the_engine_as_one_name(
    http: httpx.AsyncClient, stream: bool
) -> None:
    """U05: where the gateway rewrites the name, nothing of the other is left for the engine."""
    body = json.dumps(chat(stream=stream))[:-1] + ', "model": "alias"}'
    answer = await http.post(CHAT, content=body.encode(), headers=JSON)
    assert answer.status_code == 200
    assert '"model":"tiny"' in answer.text


STATUSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    413: APIStatusError,
    415: APIStatusError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
}


class Failing:
    """An engine's application that answers each request with the status that its user names."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = json.loads((await receive())["body"])
        error = {"message": "no", "type": "Whatever", "param": None, "code": int(asked["user"])}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        start = {"type": "http.response.start", "status": int(asked["user"]), "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def failing(gateway: Gateway) -> AsyncIterator[None]:
    """The gateway's one replica is `Failing`."""
    with short_folder() as folder:
        uds = str(folder / "f.sock")
        server = HttpServer(CleanAnswers(Failing()), keep_alive_s=60.0)
        await server.listen(unix_socket(uds))
        gateway.set_members([Address(uds=uds)], MODEL, epoch="failing")
        yield
        await server.close()


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("status", STATUSES)
async def test_each_status_is_the_clients_error_of_that_name(
    client: AsyncOpenAI, status: int
) -> None:
    with pytest.raises(STATUSES[status]) as refused:
        await client.chat.completions.create(**chat(user=str(status)))
    assert refused.value.status_code == status
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["message"] == "no"
    assert isinstance(refused.value.code, str)
    kind = "api_error" if status >= 500 else "invalid_request_error"
    assert refused.value.type == kind


async def test_an_error_leaves_the_next_request_alone(client: AsyncOpenAI) -> None:
    for _ in range(3):
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(**chat(LONG, stream=True))
        answer = await client.chat.completions.create(**chat(QUESTION))
        assert answer.choices
