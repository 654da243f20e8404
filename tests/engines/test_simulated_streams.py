"""Streams and the sameness of answers: chunk by chunk, on any replica, from any token on."""

from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.engines.simulated_tokens import encode
from tests.engines.test_simulated_serving import (
    CHAT,
    COMPLETIONS,
    USER,
    serving,
    text_of,
)


async def test_two_replicas_give_the_same_answers() -> None:
    async with serving() as one, serving(max_num_seqs=2, kv_blocks=300, speed=7.0) as two:
        for content in ("hello", "what now?", "日本"):
            answers = [await s.chat(content, max_tokens=40, seed=3) for s in (one, two)]
            assert answers[0]["choices"] == answers[1]["choices"]
            assert answers[0]["usage"] == answers[1]["usage"]


@pytest.mark.parametrize("made", [0, 1, 7, 39])
async def test_an_answer_goes_on_elsewhere_from_its_token_ids(made: int) -> None:
    fields = {"max_tokens": 40, "ignore_eos": True, "return_token_ids": True, "seed": 5}
    async with serving() as one, serving() as two:
        whole = await one.chat("tell me a story", **fields)
        ids = whole["choices"][0]["token_ids"]
        rest = await two.complete(
            whole["prompt_token_ids"] + ids[:made], **{**fields, "max_tokens": 40 - made}
        )
        assert rest["choices"][0]["token_ids"] == ids[made:]
        assert whole["choices"][0]["message"]["content"].endswith(rest["choices"][0]["text"])


async def test_a_continuation_ends_where_the_answer_would_have_ended() -> None:
    async with serving() as one, serving() as two:
        whole = await one.chat("tell me a story", return_token_ids=True)
        assert whole["choices"][0]["finish_reason"] == "stop"
        ids = whole["choices"][0]["token_ids"]
        rest = await two.complete(
            whole["prompt_token_ids"] + ids[:3], max_tokens=2000, return_token_ids=True
        )
        assert rest["choices"][0]["token_ids"] == ids[3:]
        assert rest["choices"][0]["finish_reason"] == "stop"


async def test_a_stream_tells_the_ids_that_a_continuation_needs() -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    async with serving() as served:
        plain = await served.chat(**fields)
        events = await served.chat_events(**fields)
        assert events[0]["prompt_token_ids"] == plain["prompt_token_ids"]
        told = [token for event in events[1:] for token in event["choices"][0]["token_ids"]]
        assert told == plain["choices"][0]["token_ids"]


async def test_text_and_its_token_ids_are_the_same_prompt() -> None:
    async with serving() as served:
        text = "the cat sat on the mat"
        answers = [await served.complete(prompt) for prompt in (text, encode(text))]
        assert answers[0]["choices"] == answers[1]["choices"]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("include_usage", [False, True])
async def test_every_chunk_has_its_finish_reason(n: int, tools: bool, include_usage: bool) -> None:
    # U06: the key is always there, and not null in exactly one chunk a choice, its last.
    fields: dict[str, Any] = {"n": n, "max_tokens": 20, "stream_options": {}}
    if tools:
        fields["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    fields["stream_options"] = {"include_usage": include_usage}
    async with serving() as served:
        events = await served.chat_events(**fields)
    if include_usage:
        last = events.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 0
    assert all(len(event["choices"]) == 1 and "usage" not in event for event in events)
    for index in range(n):
        choices = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("finish_reason" in choice for choice in choices)
        assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] in ("stop", "length")


async def test_completion_chunks_have_their_finish_reason_too() -> None:
    async with serving() as served:
        events = await served.events(COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 5})
        for index in range(2):
            reasons = [
                event["choices"][0]["finish_reason"]
                for event in events
                if event["choices"][0]["index"] == index
            ]
            assert reasons[-1] is not None
            assert set(reasons[:-1]) <= {None}


async def test_an_unhurried_stream_has_one_chunk_a_token() -> None:
    async with serving() as served:
        events = await served.chat_events(max_tokens=25, ignore_eos=True)
        assert len(events) == 1 + 25


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_says_what_the_plain_answer_says(path: str) -> None:
    body = {"messages": USER} if path == CHAT else {"prompt": "hello"}
    fields = {**body, "max_tokens": 30, "n": 2, "seed": 1}
    async with serving() as served:
        plain = (await served.post(path, fields)).json()
        events = await served.events(path, {**fields, "stream_options": {"include_usage": True}})
        for choice in plain["choices"]:
            said = choice["message"]["content"] if path == CHAT else choice["text"]
            assert text_of(events[:-1], choice["index"]) == said
        assert events[-1]["usage"] == plain["usage"] | {
            "prompt_tokens_details": events[-1]["usage"]["prompt_tokens_details"]
        }


async def test_a_prefix_that_was_computed_before_is_told_in_the_usage() -> None:
    async with serving() as served:
        prompt = " water" * 100
        cached = []
        for _ in range(2):
            answer = await served.complete(prompt, max_tokens=2)
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached == [0, 96]
        assert served.engine.stats().prefix_hits_total == 96
