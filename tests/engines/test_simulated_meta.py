"""The usage on the private meta channel, through the replica's own middleware."""

from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.engines.meta import COMMENT_PREFIX, ReplicaApp, decode_usage
from aibrix_ray.types import Usage
from tests.engines.test_simulated_serving import (
    CHAT,
    COMPLETIONS,
    Gate,
    chat_body,
    parse_events,
    serving,
    text_of,
    until,
)


def replica(app: Any) -> ReplicaApp:
    return ReplicaApp(app, paths=[CHAT, COMPLETIONS, "/v1/embeddings"])


META = {"x-aibrix-meta": "1"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body(max_tokens=7, n=2, ignore_eos=True)),
        (COMPLETIONS, {"prompt": ["a", " water" * 40], "max_tokens": 7}),
        ("/v1/embeddings", {"input": ["a", "b c"]}),
    ],
)
async def test_a_plain_answer_tells_its_usage_in_a_header(path: str, body: dict[str, Any]) -> None:
    async with serving(wrap=replica) as served:
        for _ in range(2):
            response = await served.post(path, body, **META)
            usage = response.json()["usage"]
            details = usage.get("prompt_tokens_details", {"cached_tokens": 0})
            assert decode_usage(response.headers["x-aibrix-meta"].encode()) == Usage(
                prompt_tokens=usage["prompt_tokens"],
                cached_tokens=details["cached_tokens"],
                completion_tokens=usage.get("completion_tokens", 0),
            )
        assert "x-aibrix-meta" not in (await served.post(path, body)).headers


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_stream_tells_its_usage_in_a_comment_before_its_end(include_usage: bool) -> None:
    body = chat_body(stream=True, max_tokens=7, stream_options={"include_usage": include_usage})
    async with serving(wrap=replica) as served:
        plain = await served.chat(max_tokens=7)
        response = await served.post(CHAT, body, **META)
        comments = [
            event for event in response.content.split(b"\n\n") if event.startswith(COMMENT_PREFIX)
        ]
        (comment,) = comments
        found = decode_usage(comment.removeprefix(COMMENT_PREFIX))
        assert found is not None
        assert found.prompt_tokens == plain["usage"]["prompt_tokens"]
        assert found.completion_tokens == plain["usage"]["completion_tokens"]
        before, _, after = response.content.partition(comment + b"\n\n")
        assert after.endswith(b"data: [DONE]\n\n")
        assert text_of(parse_events(before + after)) == plain["choices"][0]["message"]["content"]


async def test_a_broken_stream_tells_what_it_had_made() -> None:
    gate = Gate(steps=3)
    async with serving(wrap=replica, sleep=gate) as served:
        body = chat_body(stream=True, ignore_eos=True)
        async with served.client.stream("POST", CHAT, json=body, headers=META) as response:
            chunks = response.aiter_bytes()
            data = await anext(chunks)
            await until(lambda: served.engine.stats().generation_tokens_total == 3)
            await served.engine.stop()
            data += b"".join([chunk async for chunk in chunks])
        (comment,) = [e for e in data.split(b"\n\n") if e.startswith(COMMENT_PREFIX)]
        found = decode_usage(comment.removeprefix(COMMENT_PREFIX))
        assert found is not None
        assert found.completion_tokens == 3


async def test_a_refused_request_has_no_usage() -> None:
    async with serving(wrap=replica) as served:
        response = await served.post(CHAT, {"messages": []}, **META)
        assert response.status_code == 400
        assert "x-aibrix-meta" not in response.headers
