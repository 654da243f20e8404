"""What the simulated engine refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engines.test_simulated_serving import (
    CHAT,
    COMPLETIONS,
    USER,
    chat_body,
    serving,
)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [{"content": "a"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (
            CHAT,
            {"messages": [*USER, {"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[1].content",
        ),
        (CHAT, chat_body(top_p=1.01), "top_p"),
        (CHAT, chat_body(top_p=0), "top_p"),
        (CHAT, chat_body(temperature=-0.1), "temperature"),
        (CHAT, chat_body(n=0), "n"),
        (CHAT, chat_body(n="2"), "n"),
        (CHAT, chat_body(max_tokens=0), "max_tokens"),
        (CHAT, chat_body(max_tokens=1.5), "max_tokens"),
        (CHAT, chat_body(stream="yes"), "stream"),
        (CHAT, chat_body(stop=[""]), "stop"),
        (CHAT, chat_body(stop=5), "stop"),
        (CHAT, chat_body(seed=1 << 63), "seed"),
        (CHAT, chat_body(model=5), "model"),
        (CHAT, chat_body(top_logprobs=2), "top_logprobs"),
        (CHAT, chat_body(logprobs=True, top_logprobs=21), "top_logprobs"),
        (CHAT, chat_body(stream_options={"include_usage": True}), "stream_options"),
        (CHAT, chat_body(min_tokens=9, max_tokens=8), "min_tokens"),
        (CHAT, chat_body(tool_choice="required"), "tool_choice"),
        (CHAT, chat_body(response_format={"type": "json_object"}), "response_format"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", ""]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, -1]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1], [1 << 40]]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "echo": True}, "echo"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "logprobs": -1}, "logprobs"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 63}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
async def test_a_wrong_field_is_refused_by_name(
    path: str, body: dict[str, Any], param: str
) -> None:
    async with serving() as served:
        for stream in (False, True) if "stream" not in body else (False,):
            streamed = {"stream": True} if stream and path in (CHAT, COMPLETIONS) else {}
            if param == "stream_options" and streamed:
                continue
            response = await served.post(path, {**body, **streamed})
            assert response.status_code == 400
            assert response.headers["content-type"] == "application/json"
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert served.engine.stats().requests_total == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null", b'{"messages": [}'])
async def test_a_body_that_cannot_be_read_is_refused(body: bytes) -> None:
    async with serving() as served:
        response = await served.client.post(CHAT, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        # U10 and its neighbours: too long a prompt, too long an answer, an unknown model.
        (
            CHAT,
            {"messages": [{"role": "user", "content": " water" * 100}]},
            400,
            "maximum context length is 64 tokens. However, your prompt contains 103 input tokens",
        ),
        (
            COMPLETIONS,
            {"prompt": " water" * 64},
            400,
            "maximum context length is 64 tokens. However, your prompt contains 64 input tokens",
        ),
        (
            COMPLETIONS,
            {"prompt": " water" * 60, "max_tokens": 5},
            400,
            "requested 5 output tokens and your prompt contains 60 input tokens, for a total of 65",
        ),
        (CHAT, {"messages": USER, "model": "tinny"}, 404, "`tinny` does not exist"),
    ],
)
async def test_an_error_before_the_first_byte_has_its_status_and_a_json_body(
    path: str, body: dict[str, Any], status: int, message: str, stream: bool
) -> None:
    async with serving(max_model_len=64) as served:
        response = await served.post(path, {**body, "stream": stream})
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        error = response.json()["error"]
        assert message in error["message"]
        assert error["code"] == ("context_length_exceeded" if status == 400 else "model_not_found")
        assert served.engine.stats().running == 0


async def test_a_prompt_that_just_fits_is_answered() -> None:
    async with serving(max_model_len=64) as served:
        answer = await served.complete(" water" * 63)
        assert answer["usage"]["completion_tokens"] == 1
        answer = await served.complete(" water" * 60, max_tokens=4, ignore_eos=True)
        assert answer["usage"]["total_tokens"] == 64


async def test_fields_that_only_shape_a_distribution_are_accepted() -> None:
    async with serving() as served:
        fields = {"top_k": 5, "min_p": 0.1, "presence_penalty": 1, "user": "u", "top_p": 1}
        await served.chat(max_tokens=2, logit_bias={"5": 1}, **fields)
        await served.chat(max_tokens=2, temperature=None, stop=None, tools=[], unknown_field=1)
        await served.chat([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}])
