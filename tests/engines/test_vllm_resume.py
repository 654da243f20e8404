"""Streams of a real vLLM that are cut and continued: greedy ones are the undisturbed ones."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from tests.engines.carried import (
    CHAT,
    COMPLETIONS,
    TOKENS,
    Answer,
    Ask,
    Reading,
    ask_socket,
    assert_unbroken,
    resume,
)
from tests.engines.conftest import MODEL, EngineProcess, eventually

pytestmark = pytest.mark.engine

USAGE = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture
def ask(engine: EngineProcess) -> Ask:
    """Ask the shared engine; another request's cache is what another replica is like."""
    return functools.partial(ask_socket, engine.uds)


def body_for(path: str, text: str, **fields: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    return {"model": MODEL, "temperature": 0, "max_tokens": 20, **asked, **fields}


async def read(ask: Ask, path: str, body: dict[str, Any]) -> Reading:
    return (await ask(path, {"stream": True, **body}, TOKENS)).reading()


BOTH = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])


@BOTH
@pytest.mark.parametrize("text", ["What is a gateway?", "def main():"])
@pytest.mark.parametrize("options", [None, USAGE, CONTINUOUS], ids=["", "usage", "continuous"])
async def test_a_cut_stream_goes_on_word_for_word(
    ask: Ask, path: str, text: str, options: Any
) -> None:
    body = body_for(path, text, ignore_eos=True, stream_options=options)
    whole = await assert_unbroken(ask, path, body, step=4)
    assert whole.ends == [("length", None)]
    assert len(whole.ids) == 20


@BOTH
async def test_a_long_prompt_that_is_cached_counts_as_it_did_at_first(ask: Ask, path: str) -> None:
    body = body_for(path, "one two three four " * 40, ignore_eos=True, stream_options=USAGE)
    first = await assert_unbroken(ask, path, body, step=7)
    again = await assert_unbroken(ask, path, body, step=7)
    assert first.prompt is not None
    assert again.prompt is not None
    assert first.prompt[1] < again.prompt[1] <= again.prompt[0]
    # Without word of the first replica's cache: what this one found, at most the prompt.
    headers = {name: value for name, value in resume(again).items() if name != "x-aibrix-cached"}
    rest = (await ask(path, {"stream": True, **body, "max_tokens": 24}, headers)).reading()
    assert rest.usage is not None
    assert 0 < rest.usage.cached_tokens <= rest.usage.prompt_tokens == again.prompt[0]


@BOTH
@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize("least", [0, 3])
async def test_a_stop_string_may_lie_across_the_cut(
    ask: Ask, path: str, included: bool, least: int
) -> None:
    body = body_for(path, "Tell me of routing.", ignore_eos=True, min_tokens=least)
    free = await read(ask, path, body)
    middle = len(free.text) // 2
    stop = free.text[middle - 4 : middle + 5]
    body |= {"stop": [stop, "never there"], "include_stop_str_in_output": included}
    whole = await assert_unbroken(ask, path, {**body, "stream_options": USAGE})
    assert whole.ends == [("stop", stop)]
    assert whole.text == free.text[: free.text.index(stop) + len(stop) * included]


@BOTH
async def test_a_stop_string_that_min_tokens_pass_over_stays_passed_over(
    ask: Ask, path: str
) -> None:
    free = await read(ask, path, body_for(path, "Tell me of routing.", ignore_eos=True))
    body = body_for(path, "Tell me of routing.", ignore_eos=True, stop=[free.text[4:7]])
    whole = await assert_unbroken(ask, path, {**body, "min_tokens": 12}, step=3)
    assert len(whole.ids) >= 12


@BOTH
async def test_a_character_may_lie_across_the_cut(ask: Ask, path: str) -> None:
    text = "日本語é🎉±漢字"
    (told,) = (await ask("/tokenize", {"model": MODEL, "prompt": text}, {})).messages
    ids = json.loads(told)["tokens"]
    assert len(ids) > len(text), "a character has several tokens"
    pieces = []
    for count, token in enumerate(ids):  # the only one that may come next
        body = body_for(path, "Hello", allowed_token_ids=[token], max_tokens=count + 1)
        before = {**TOKENS, "x-aibrix-resume": ",".join(map(str, ids[:count]))}
        rest = (await ask(path, {"stream": True, **body}, before)).reading()
        assert rest.ids == [token]
        pieces.append(rest.text)
    assert "".join(pieces) == text
    assert "" in pieces


@BOTH
async def test_special_tokens_are_shown_or_not_as_before(ask: Ask, path: str) -> None:
    for skip in (True, False):
        body = body_for(path, "Hello", ignore_eos=True, skip_special_tokens=skip)
        await assert_unbroken(ask, path, {**body, "min_tokens": 4}, step=5)


@BOTH
async def test_an_answer_that_ended_by_itself_is_not_continued(
    ask: Ask, engine: EngineProcess, path: str
) -> None:
    body = body_for(path, "What is a gateway?", max_tokens=300, stream_options=USAGE)
    chat = await read(ask, CHAT, body_for(CHAT, "What is a gateway?", max_tokens=300))
    if path == CHAT:
        body |= {"min_tokens": len(chat.ids) - 1}  # not counted down, they were more each time
    else:  # which ends by itself rarely
        body |= {"stop_token_ids": [chat.ids[-1]], "logit_bias": {str(chat.ids[-1]): 100}}
        body |= {"min_tokens": 13, "ignore_eos": True}
    whole = await assert_unbroken(ask, path, body, step=6)
    assert [reason for reason, _ in whole.ends] == ["stop"]
    before = (await engine.stats())["requests_total"]
    rest = (await ask(path, {"stream": True, **body}, resume(whole))).reading()
    assert (rest.ids, rest.text, rest.ends) == ([], "", [])
    assert rest.told_usage == whole.told_usage[-1:]
    assert rest.usage == whole.usage
    assert (await engine.stats())["requests_total"] == before


@BOTH
async def test_a_stop_token_at_the_cut_is_found_again(ask: Ask, path: str) -> None:
    free = await read(ask, path, body_for(path, "Hello", ignore_eos=True))
    stop = free.ids[10]
    body = body_for(path, "Hello", ignore_eos=True, stop_token_ids=[stop], stream_options=USAGE)
    whole = await assert_unbroken(ask, path, body)
    assert whole.ends == [("stop", stop)]


@BOTH
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"repetition_penalty": 1.3}, id="repetition penalty"),
        pytest.param({"logit_bias": {"65": 3.0}}, id="logit bias"),
        pytest.param({"min_tokens": 15}, id="min tokens"),
        pytest.param({"max_tokens": 1}, id="one token"),
        pytest.param({"stream_interval": 4}, id="several tokens an event"),
        pytest.param({"return_token_ids": True}, id="token ids for the client too"),
        pytest.param({"cache_salt": "salt"}, id="salt"),
        pytest.param({"seed": 5}, id="seed, greedy"),
        pytest.param({"min_tokens": 20, "stop": ["e", "a"]}, id="min and max tokens"),
    ],
)
async def test_what_depends_on_token_ids_alone_is_carried(
    ask: Ask, path: str, fields: dict[str, Any]
) -> None:
    body = body_for(path, "Tell me of prefix caches.", **fields)
    whole = await assert_unbroken(ask, path, {**body, "stream_options": USAGE}, step=3)
    given = [token for choice in whole.choices for token in choice.get("token_ids") or ()]
    assert given == (whole.ids if "return_token_ids" in fields else [])


async def test_a_chat_whose_tools_are_switched_off_is_carried(ask: Ask) -> None:
    body = body_for(CHAT, "What is a gateway?", tools=TOOLS, tool_choice="none")
    await assert_unbroken(ask, CHAT, body, step=4)


@BOTH
async def test_a_sampled_stream_goes_on_from_the_same_prefix(ask: Ask, path: str) -> None:
    body = {"stream": True, **body_for(path, "Hello", temperature=1.5, seed=11, ignore_eos=True)}
    answer = await ask(path, body, TOKENS)
    prefix = Reading(answer.messages[:8])
    rest = (await ask(path, body, resume(prefix))).reading()
    assert len(prefix.ids) + len(rest.ids) == 20
    assert rest.ends == [("length", None)]
    greedy = {**body, "temperature": 0}
    both = [(await ask(path, greedy, resume(prefix))).reading() for _ in range(2)]
    assert both[0].ids == both[1].ids
    assert both[0].text == both[1].text


def not_carried() -> list[Any]:
    """What is refused, by path and fields."""
    common: dict[str, dict[str, Any]] = {
        "n": {"n": 2, "temperature": 1.0},
        "presence penalty": {"presence_penalty": 0.5},
        "frequency penalty": {"frequency_penalty": 0.5},
        "bad words": {"bad_words": ["the"]},
        "a JSON object": {"response_format": {"type": "json_object"}},
        "a choice": {"structured_outputs": {"choice": ["yes", "no"]}},
        "prompt logprobs": {"prompt_logprobs": 1, "stream": False},
        "repetition detection": {
            "repetition_detection": {"max_pattern_size": 3, "min_count": 5, "min_pattern_size": 1}
        },
        "arguments for a plug-in": {"vllm_xargs": {"a": 1}},
        "logprobs of tokens": {"logprobs": 1, "logprob_token_ids": [65]},
        "echo": {"echo": True},
        "no stream": {"stream": False},
    }
    chats: dict[str, dict[str, Any]] = {
        "logprobs": {"logprobs": True, "top_logprobs": 1},
        "tools": {"tools": TOOLS},
        "a named tool": {
            "tools": TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
        "a beam search": {"use_beam_search": True, "stream": False, "n": 2},
    }
    completions: dict[str, dict[str, Any]] = {
        "logprobs": {"logprobs": 1},
        "two prompts": {"prompt": ["a", "b"]},
        "a beam search": {"use_beam_search": True, "stream": False, "n": 2},
    }
    rows = [(CHAT, common | chats), (COMPLETIONS, common | completions)]
    return [
        pytest.param(path, fields, id=f"{path.split('/')[2]}, {name}")
        for path, table in rows
        for name, fields in table.items()
        if not (path == CHAT and name == "logprobs of tokens")
    ]


@pytest.mark.parametrize(("path", "fields"), not_carried())
async def test_what_is_not_carried_has_no_lines_and_is_not_continued(
    ask: Ask, engine: EngineProcess, path: str, fields: dict[str, Any]
) -> None:
    body = {"stream": True, **body_for(path, "Hello", max_tokens=4), **fields}
    fresh = await ask(path, body, TOKENS)
    assert fresh.status == 200, fresh.messages
    assert not any(message.startswith((b":=", b":+")) for message in fresh.messages)
    refused = await ask(path, body, {**TOKENS, "x-aibrix-resume": "65"})
    assert (refused.status, refused.headers.get("x-aibrix-resume")) == (409, "refused")
    assert refused.messages[0]


@BOTH
@pytest.mark.parametrize(
    "ids",
    [
        pytest.param("999999999", id="out of vocabulary"),
        pytest.param(",".join(["65"] * 21), id="more than max_tokens"),
        pytest.param("a", id="no ids"),
    ],
)
async def test_ids_that_the_request_cannot_have_made_are_refused(
    ask: Ask, path: str, ids: str
) -> None:
    body = {"stream": True, **body_for(path, "Hello")}
    refused = await ask(path, body, {**TOKENS, "x-aibrix-resume": ids})
    assert (refused.status, refused.headers["x-aibrix-resume"]) == (409, "refused")


async def test_a_request_that_vllm_itself_refuses_keeps_its_answer(ask: Ask) -> None:
    body = {"stream": True, **body_for(CHAT, "Hello", temperature=-1)}
    answers: list[Answer] = [
        await ask(CHAT, body, headers) for headers in (TOKENS, {**TOKENS, "x-aibrix-resume": "65"})
    ]
    assert [answer.status for answer in answers] == [400, 400]


@BOTH
async def test_a_client_that_leaves_a_continued_stream_ends_it(
    engine: EngineProcess, path: str
) -> None:
    body = {"stream": True, **body_for(path, "Hello", max_tokens=900, ignore_eos=True)}
    async with (
        engine.client() as client,
        client.stream("POST", path, json=body, headers={**TOKENS, "x-aibrix-resume": "65"}) as got,
    ):
        assert got.status_code == 200
        await anext(got.aiter_raw())

    async def idle() -> bool:
        return await engine.running() == 0

    await eventually(idle, within_s=20.0, what="the engine has nothing left to do")
