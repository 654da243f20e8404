"""Plain answers of every endpoint, in OpenAI's shapes."""

from __future__ import annotations

from base64 import b64decode
from struct import unpack
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


async def test_a_chat_answer_has_openai_s_shape() -> None:
    async with serving() as served:
        answer = await served.chat(max_tokens=6, ignore_eos=True)
        (choice,) = answer["choices"]
        assert answer["object"] == "chat.completion"
        assert answer["id"].startswith("chatcmpl-")
        assert answer["model"] == "tiny"
        assert choice["message"]["role"] == "assistant"
        assert len(choice["message"]["content"].split()) == 6
        assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
        usage = answer["usage"]
        assert usage["completion_tokens"] == 6
        assert usage["total_tokens"] == usage["prompt_tokens"] + 6


async def test_a_completion_has_openai_s_shape() -> None:
    async with serving() as served:
        answer = await served.complete(ignore_eos=True)
        (choice,) = answer["choices"]
        assert answer["object"] == "text_completion"
        assert answer["id"].startswith("cmpl-")
        assert len(choice["text"].split()) == 16  # OpenAI's default
        assert choice["finish_reason"] == "length"


async def test_the_request_id_is_that_of_the_request() -> None:
    async with serving() as served:
        response = await served.post(CHAT, {"messages": USER}, **{"x-request-id": "abc"})
        assert response.json()["id"] == "chatcmpl-abc"


async def test_an_answer_that_is_not_bounded_ends_by_itself() -> None:
    async with serving() as served:
        answers = [await served.chat(f"question {n}") for n in range(20)]
        reasons = [answer["choices"][0]["finish_reason"] for answer in answers]
        assert reasons == ["stop"] * 20
        short = [await served.chat(f"question {n}", max_tokens=30) for n in range(20)]
        assert {answer["choices"][0]["finish_reason"] for answer in short} == {"stop", "length"}


async def test_an_answer_fills_the_context_where_nothing_ends_it() -> None:
    async with serving(max_model_len=100) as served:
        answer = await served.chat(ignore_eos=True)
        assert answer["usage"]["total_tokens"] == 100
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_max_completion_tokens_comes_before_max_tokens() -> None:
    async with serving() as served:
        answer = await served.chat(max_tokens=9, max_completion_tokens=3, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 3


async def test_several_prompts_and_choices_are_numbered_as_openai_does() -> None:
    async with serving() as served:
        one = await served.complete(["a", "b"], n=2, max_tokens=4, temperature=1.0)
        assert [choice["index"] for choice in one["choices"]] == [0, 1, 2, 3]
        texts = [choice["text"] for choice in one["choices"]]
        assert len(set(texts)) == 4
        alone = [await served.complete(prompt, max_tokens=4) for prompt in ("a", "b")]
        assert [answer["choices"][0]["text"] for answer in alone] == [texts[0], texts[2]]
        prompt_tokens = sum(answer["usage"]["prompt_tokens"] for answer in alone)
        assert one["usage"]["prompt_tokens"] == prompt_tokens
        assert one["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("temperature", "differs"), [(0.0, False), (0.7, True), (None, True), (2.0, True)]
)
async def test_a_seed_matters_where_there_is_a_temperature(
    temperature: float | None, differs: bool
) -> None:
    async with serving() as served:
        texts = [
            (await served.complete(max_tokens=8, seed=seed, temperature=temperature))["choices"][0]
            for seed in (1, 2, 2)
        ]
        assert (texts[0] != texts[1]) is differs
        assert texts[1] == texts[2]


async def test_a_stop_text_ends_the_answer_before_it() -> None:
    async with serving() as served:
        whole = (await served.complete(max_tokens=30, ignore_eos=True))["choices"][0]["text"]
        words = whole.split()
        stop = f"{words[9]} {words[10]}"  # spans two tokens
        fields = {"max_tokens": 30, "ignore_eos": True, "stop": ["never said", stop]}
        answer = await served.complete(**fields)
        (choice,) = answer["choices"]
        assert choice["text"] == whole[: whole.index(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        assert answer["usage"]["completion_tokens"] == 11
        events = await served.events(COMPLETIONS, {"prompt": "hello", **fields})
        assert text_of(events) == choice["text"]


@pytest.mark.parametrize("stop", ["zzz", " ", "\n", ["x" * 50]])
async def test_a_stop_text_is_held_back_only_while_it_may_come(stop: Any) -> None:
    async with serving() as served:
        fields = {"prompt": "hello", "max_tokens": 30, "ignore_eos": True, "stop": stop}
        plain = await served.complete(**fields)
        events = await served.events(COMPLETIONS, fields)
        assert text_of(events) == plain["choices"][0]["text"]
        assert plain["choices"][0]["text"] == "" if stop == " " else True


async def test_a_stop_token_ends_the_answer() -> None:
    async with serving() as served:
        fields = {"max_tokens": 20, "ignore_eos": True, "return_token_ids": True}
        ids = (await served.complete(**fields))["choices"][0]["token_ids"]
        (choice,) = (await served.complete(**fields, stop_token_ids=[ids[5]]))["choices"]
        assert choice["token_ids"] == ids[: ids.index(ids[5]) + 1]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[5])


async def test_logprobs_come_in_both_shapes() -> None:
    async with serving() as served:
        chat = await served.chat(max_tokens=4, ignore_eos=True, logprobs=True, top_logprobs=3)
        (choice,) = chat["choices"]
        content = choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
        assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in content)
        assert [len(entry["top_logprobs"]) for entry in content] == [3] * 4
        bare = await served.chat(max_tokens=4, ignore_eos=True, logprobs=True)
        assert [e["top_logprobs"] for e in bare["choices"][0]["logprobs"]["content"]] == [[]] * 4
        plain = await served.complete(max_tokens=4, ignore_eos=True, logprobs=2)
        found = plain["choices"][0]["logprobs"]
        text = plain["choices"][0]["text"]
        assert "".join(found["tokens"]) == text
        spans = zip(found["text_offset"], found["tokens"], strict=True)
        assert all(text[at : at + len(token)] == token for at, token in spans)
        assert [len(row) for row in found["top_logprobs"]] == [2] * 4
        assert all(value < 0 for value in found["token_logprobs"])
        events = await served.events(
            COMPLETIONS, {"prompt": "hello", "max_tokens": 4, "ignore_eos": True, "logprobs": 2}
        )
        offsets = [at for e in events for at in e["choices"][0]["logprobs"]["text_offset"]]
        assert offsets == found["text_offset"]


async def test_embeddings_are_the_same_for_the_same_text() -> None:
    async with serving() as served:
        response = await served.post("/v1/embeddings", {"input": ["a b", "c", "a b"]})
        body = response.json()
        vectors = [entry["embedding"] for entry in body["data"]]
        assert [entry["index"] for entry in body["data"]] == [0, 1, 2]
        assert [len(vector) for vector in vectors] == [64] * 3
        assert vectors[0] == vectors[2] != vectors[1]
        assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
        packed = await served.post(
            "/v1/embeddings", {"input": encode("a b"), "encoding_format": "base64"}
        )
        found = unpack("<64f", b64decode(packed.json()["data"][0]["embedding"]))
        assert found == pytest.approx(vectors[0])
        assert served.engine.stats().generation_tokens_total == 0


@pytest.mark.parametrize("text", ["the cat", "日本 \n x", ""])
async def test_a_text_is_tokenized_and_back(text: str) -> None:
    async with serving() as served:
        found = (await served.post("/tokenize", {"prompt": text, "return_token_strs": True})).json()
        assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
        assert found["max_model_len"] == 4096
        back = await served.post("/detokenize", {"tokens": found["tokens"]})
        assert back.json() == {"prompt": text}


async def test_a_conversation_is_counted_as_it_is_prompted() -> None:
    async with serving() as served:
        counted = (await served.post("/tokenize", {"messages": USER})).json()
        assert counted["count"] == (await served.chat(max_tokens=1))["usage"]["prompt_tokens"]
