"""vLLM's own OpenAI application behind a replica's listener: answers, usage, errors, aborts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import jsonschema
import pytest

from aibrix_ray.engines.meta import COMMENT_PREFIX, META_HEADER, decode_usage
from aibrix_ray.types import Usage
from tests.engines.conftest import CONTEXT, MODEL, EngineProcess

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
META = {META_HEADER.decode(): "1"}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
                "required": ["unit"],
                "additionalProperties": False,
            },
        },
    }
]


def chat(text: str = "def main():", **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 12,
        "ignore_eos": True,
        **more,
    }


def completion(prompt: Any = "import os", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": 12, "ignore_eos": True, **more}


def told(usage: Mapping[str, Any]) -> Usage:
    """Return an answer's own `usage` as the meta channel would say it."""
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
        completion_tokens=usage.get("completion_tokens", 0),
    )


def meta_of(answer: httpx.Response) -> Usage | None:
    return decode_usage(answer.headers[META_HEADER.decode()].encode())


class Stream:
    """A whole event stream, read: its chunks, and the comment with its place."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        self.events = [event for event in answer.text.split("\n\n") if event]
        self.comments = [e for e in self.events if e.startswith(COMMENT_PREFIX.decode())]
        data = [e.removeprefix("data: ") for e in self.events if e.startswith("data: ")]
        self.chunks: list[dict[str, Any]] = [json.loads(d) for d in data if d != "[DONE]"]

    @property
    def usage(self) -> dict[str, Any]:
        usage: dict[str, Any] = self.chunks[-1]["usage"]
        return usage

    @property
    def meta(self) -> Usage | None:
        assert len(self.comments) == 1, self.events
        return decode_usage(self.comments[0].encode().removeprefix(COMMENT_PREFIX))


async def ask(client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
    return await client.post(path, json=body, headers=META)


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Stream:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return Stream(await ask(client, path, options | body))


ASKED = [
    pytest.param(CHAT, chat(), id="chat"),
    pytest.param(CHAT, chat(n=2, temperature=1.0), id="chat, two choices"),
    pytest.param(COMPLETION, completion(), id="completion"),
    pytest.param(COMPLETION, completion(["import os", "class A:"]), id="two prompts"),
    pytest.param(
        COMPLETION, completion(["import os", "class A:"], n=2, temperature=1.0), id="two by two"
    ),
    pytest.param(COMPLETION, completion(stop=["e", "a"]), id="stopped by a string"),
    pytest.param(COMPLETION, completion(echo=True, max_tokens=3), id="echo"),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_plain_answer_carries_its_usage(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await ask(client, path, body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == MODEL
    usage = told(answer.json()["usage"])
    assert usage.completion_tokens > 0
    assert meta_of(answer) == usage


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_stream_tells_its_usage_before_its_end(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await stream(client, path, body)
    assert answer.meta is not None
    # Of several prompts vLLM's stream tells the first one's cached tokens, the channel all.
    cached = answer.meta.cached_tokens if isinstance(body.get("prompt"), list) else None
    usage = told(answer.usage)
    if cached is not None:
        usage = Usage(usage.prompt_tokens, cached, usage.completion_tokens)
    assert answer.meta == usage
    assert answer.events[-2:] == [answer.comments[0], "data: [DONE]"]


async def test_usage_needs_no_usage_chunk(client: httpx.AsyncClient) -> None:
    answer = Stream(await ask(client, CHAT, chat(stream=True, max_tokens=5)))
    assert all(not chunk.get("usage") for chunk in answer.chunks)
    assert answer.meta is not None
    assert answer.meta.completion_tokens == 5


async def test_continuous_usage_is_counted_once(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = Stream(await ask(client, CHAT, chat(stream=True, stream_options=options)))
    assert answer.meta == told(answer.usage)


async def test_nobody_else_hears_of_it(client: httpx.AsyncClient) -> None:
    plain = await client.post(CHAT, json=chat())
    streamed = await client.post(CHAT, json=chat(stream=True))
    assert META_HEADER.decode() not in plain.headers
    assert COMMENT_PREFIX.decode() not in streamed.text


async def test_a_beam_search_costs_what_its_answer_says(client: httpx.AsyncClient) -> None:
    body = completion(use_beam_search=True, n=3, max_tokens=4, temperature=0.0)
    answer = await ask(client, COMPLETION, body)
    assert answer.status_code == 200, answer.text
    assert meta_of(answer) == told(answer.json()["usage"])


async def test_other_generating_endpoints_carry_usage(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "input": "import os", "max_output_tokens": 8}
    answer = await ask(client, "/v1/responses", body)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    meta = meta_of(answer)
    assert meta is not None
    assert (meta.prompt_tokens, meta.completion_tokens) == (
        usage["input_tokens"],
        usage["output_tokens"],
    )
    streamed = await ask(client, "/v1/responses", body | {"stream": True})
    assert streamed.text.count(COMMENT_PREFIX.decode()) == 1

    messages = chat(max_tokens=8) | {"model": MODEL}
    answer = await ask(client, "/v1/messages", messages)
    assert answer.status_code == 200, answer.text
    meta = meta_of(answer)
    assert meta is not None
    assert meta.completion_tokens == answer.json()["usage"]["output_tokens"]


async def test_cached_tokens_are_told(client: httpx.AsyncClient, engine: EngineProcess) -> None:
    before = await engine.stats()
    prompt = "def cached_tokens_are_told():\n    return [" + "cached, " * 40
    first = await ask(client, COMPLETION, completion(prompt, max_tokens=2))
    again = await ask(client, COMPLETION, completion(prompt, max_tokens=2))
    streamed = await stream(client, COMPLETION, completion(prompt, max_tokens=2))

    assert meta_of(first) == told(first.json()["usage"])
    assert meta_of(again) == told(again.json()["usage"])
    assert streamed.meta == told(streamed.usage)
    meta = meta_of(again)
    assert meta is not None
    # The CPU profile's blocks hold 32 tokens; the last token is always computed.
    assert meta.cached_tokens == (meta.prompt_tokens - 1) // 32 * 32 > 0
    after = await engine.stats()
    assert after["prefix_hits_total"] - before["prefix_hits_total"] == 2 * meta.cached_tokens
    assert after["prefix_queries_total"] - before["prefix_queries_total"] == 3 * meta.prompt_tokens


async def test_logprobs(client: httpx.AsyncClient) -> None:
    # If torch compiled anything for them, the first such request would take half a minute.
    answer = await ask(client, CHAT, chat(logprobs=True, top_logprobs=3, max_tokens=4))
    content = answer.json()["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in content] == [3] * 4
    assert all(entry["logprob"] <= 0.0 for entry in content)


async def test_a_json_schema_is_kept(client: httpx.AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "size": {"enum": ["s", "m", "l"]}},
        "required": ["yes", "size"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = await ask(client, CHAT, chat(response_format=form, max_tokens=64, ignore_eos=False))
    assert answer.status_code == 200, answer.text
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), schema)


async def test_tokens_go_there_and_back(client: httpx.AsyncClient) -> None:
    text = "import asyncio"
    there = await client.post(
        "/tokenize", json={"model": MODEL, "prompt": text, "add_special_tokens": False}
    )
    tokens = there.json()["tokens"]
    assert there.json()["count"] == len(tokens) > 0
    assert there.json()["max_model_len"] == CONTEXT
    back = await client.post("/detokenize", json={"model": MODEL, "tokens": tokens})
    assert back.json()["prompt"] == text


def check_finish_reasons(chunks: list[dict[str, Any]], choices: int) -> dict[int, str]:
    """Assert what strict SDKs need of a chat stream; return each choice's finish reason."""
    finished: dict[int, str] = {}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            assert "finish_reason" in choice, choice
            assert choice["index"] not in finished, "a chunk after the choice's end"
            if choice["finish_reason"] is not None:
                finished[choice["index"]] = choice["finish_reason"]
    assert chunks[-1]["choices"] == []
    assert sorted(finished) == list(range(choices))
    return finished


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    "tools",
    [{}, {"tools": TOOLS, "tool_choice": "auto"}, {"tools": TOOLS, "tool_choice": "required"}],
    ids=["no tools", "auto", "required"],
)
async def test_every_chunk_has_a_finish_reason(
    client: httpx.AsyncClient, n: int, tools: dict[str, Any]
) -> None:
    body = chat(n=n, temperature=1.0, max_tokens=96, ignore_eos=False, **tools)
    answer = await stream(client, CHAT, body)
    finished = check_finish_reasons(answer.chunks, n)
    if tools.get("tool_choice") == "required":
        assert set(finished.values()) <= {"tool_calls", "length", "stop"}


async def test_embeddings_of_a_generating_model_are_refused(client: httpx.AsyncClient) -> None:
    answer = await ask(client, "/v1/embeddings", {"model": MODEL, "input": "import os"})
    assert answer.status_code in (400, 404)
    assert answer.headers["content-type"] == "application/json"
    assert META_HEADER.decode() not in answer.headers


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, chat("word " * CONTEXT)), (COMPLETION, completion("word " * CONTEXT))],
    ids=["chat", "completion"],
)
async def test_a_prompt_beyond_the_context_is_a_400_with_numbers(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], streamed: bool
) -> None:
    answer = await ask(client, path, body | {"stream": streamed})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert str(CONTEXT) in error["message"]
    assert error["code"] == 400


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_unknown_model_is_a_404_also_of_a_stream(
    client: httpx.AsyncClient, streamed: bool
) -> None:
    answer = await ask(client, CHAT, chat(stream=streamed) | {"model": "another"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert "another" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content", [b'{"model": ', b'{"model": "tiny", "messages": 7}', b'{"model": "tiny"}']
)
async def test_malformed_requests_keep_vllms_own_body(
    client: httpx.AsyncClient, content: bytes
) -> None:
    headers = {"content-type": "application/json"} | META
    answer = await client.post(CHAT, content=content, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"]
    assert error["code"] == 400


async def test_health_is_told_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.get("/control/health")
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/collective_rpc", "/reset_prefix_cache", "/sleep", "/docs"])
async def test_nothing_else_is_reached(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path)
    assert answer.status_code == 404
