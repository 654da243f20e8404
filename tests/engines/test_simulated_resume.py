"""Streams of the simulated engine that are cut and continued on another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibrix_ray.engines import simulated_tokens as tokens
from aibrix_ray.engines.meta import ReplicaApp
from tests.engines.carried import (
    CHAT,
    COMPLETIONS,
    TOKENS,
    Answer,
    Reading,
    ask_app,
    assert_unbroken,
    resume,
)
from tests.engines.test_simulated_serving import (
    Gate,
    chat_body,
    make_engine,
    serving,
    until,
)

USAGE = {"include_usage": True}
PATHS = [CHAT, COMPLETIONS, "/v1/embeddings"]


class Engines:
    """Several engines; each request goes to another one than the last."""

    def __init__(self, count: int) -> None:
        self.engines = [make_engine(block_size=4) for _ in range(count)]
        self._turn = 0

    async def ask(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        self._turn += 1
        engine = self.engines[self._turn % len(self.engines)]
        return await ask_app(ReplicaApp(engine.openai_app(), paths=PATHS), path, body, headers)


@asynccontextmanager
async def engines(count: int = 2) -> AsyncIterator[Engines]:
    found = Engines(count)
    for engine in found.engines:
        await engine.start()
    try:
        yield found
    finally:
        for engine in found.engines:
            await engine.stop()


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    return chat_body(**fields) if path == CHAT else {"prompt": "hello, world", **fields}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="to the context's end"),
        pytest.param({"stream_options": USAGE}, id="usage"),
        pytest.param({"max_tokens": 1}, id="one token"),
        pytest.param({"return_token_ids": True}, id="token ids for the client too"),
        pytest.param({"seed": 3, "temperature": 1.0}, id="seed"),
        pytest.param({"cache_salt": "s"}, id="salt"),
    ],
)
async def test_a_cut_stream_goes_on_word_for_word(path: str, fields: dict[str, Any]) -> None:
    async with engines() as found:
        body = body_for(path, **{"max_tokens": 24, "ignore_eos": True, **fields})
        whole = await assert_unbroken(found.ask, path, body)
        assert whole.ends == [("length", None)]
        assert tokens.decode(whole.ids) == whole.text
        given_ids = [token for choice in whole.choices for token in choice.get("token_ids") or ()]
        assert given_ids == (whole.ids if "return_token_ids" in fields else [])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_every_kind_of_end_is_found_again_at_the_cut(path: str) -> None:
    async with engines() as found:
        body = body_for(path, max_tokens=30, ignore_eos=True)
        free = (await found.ask(path, {"stream": True, **body}, TOKENS)).reading()
        across = free.text[20:31]  # over several words
        ends: list[tuple[dict[str, Any], tuple[str, Any]]] = [
            ({"stop": [across], "stream_options": USAGE}, ("stop", across)),
            ({"stop": ["nowhere in there", across]}, ("stop", across)),
            ({"stop_token_ids": [free.ids[9]]}, ("stop", free.ids[9])),
            ({"stop_token_ids": [free.ids[9]], "min_tokens": 12}, ("length", None)),
            ({"max_tokens": 9}, ("length", None)),
        ]
        for fields, end in ends:
            whole = await assert_unbroken(found.ask, path, {**body, **fields})
            assert whole.ends == [end]


async def test_an_answer_that_ended_by_itself_is_not_continued() -> None:
    async with engines() as found:
        for number in range(4):
            body = {"prompt": f"tell me {number}", "max_tokens": 900, "stream_options": USAGE}
            whole = await assert_unbroken(found.ask, COMPLETIONS, body, step=1000)
            assert whole.ends == [("stop", None)]
            assert whole.ids[-1] == tokens.END
            before = [engine.stats().requests_total for engine in found.engines]
            rest = (await found.ask(COMPLETIONS, {"stream": True, **body}, resume(whole))).reading()
            assert [engine.stats().requests_total for engine in found.engines] == before
            assert (rest.ids, rest.text, rest.ends) == ([], "", [])
            assert rest.told_usage == whole.told_usage


@settings(max_examples=40, deadline=None)
@given(
    cut=st.integers(0, 40),
    stops=st.lists(st.text("the on", min_size=1, max_size=5), max_size=3),
    least=st.integers(0, 20),
    most=st.integers(20, 40),
    ignore_eos=st.booleans(),
)
async def test_any_ids_can_be_continued(
    cut: int, stops: list[str], least: int, most: int, ignore_eos: bool
) -> None:
    body = {
        "stream": True,
        "prompt": "hello",
        "stop": stops,
        "min_tokens": least,
        "max_tokens": most,
        "ignore_eos": ignore_eos,
    }
    async with engines(1) as found:
        whole = (await found.ask(COMPLETIONS, body, TOKENS)).reading()
        ids = whole.ids[:cut]
        headers = {**TOKENS, "x-aibrix-resume": ",".join(map(str, ids))}
        rest = (await found.ask(COMPLETIONS, body, headers)).reading()
        assert ids + rest.ids == whole.ids
        assert whole.text.endswith(rest.text)
        held_back = max(map(len, stops), default=1) - 1
        shown = len(whole.text) - len(rest.text)
        assert len(tokens.decode(ids)) - held_back <= shown or ids == whole.ids
        if len(ids) < len(whole.ids):
            assert shown == max(0, len(tokens.decode(ids)) - held_back)
            assert rest.ends == whole.ends


NOT_CARRIED = [
    pytest.param(CHAT, {"n": 2}, id="n"),
    pytest.param(CHAT, {"logprobs": True}, id="logprobs"),
    pytest.param(CHAT, {"presence_penalty": 0.5}, id="presence"),
    pytest.param(CHAT, {"frequency_penalty": 0.5}, id="frequency"),
    pytest.param(CHAT, {"tools": [{"type": "function"}]}, id="tools"),
    pytest.param(COMPLETIONS, {"prompt": ["a", "b"]}, id="two prompts"),
    pytest.param(COMPLETIONS, {"logprobs": 1}, id="logprobs of a completion"),
    pytest.param(COMPLETIONS, {"stream": False}, id="no stream"),
]


@pytest.mark.parametrize(("path", "fields"), NOT_CARRIED)
async def test_what_is_not_carried_has_no_lines_and_is_not_continued(
    path: str, fields: dict[str, Any]
) -> None:
    async with engines() as found:
        body = {"stream": True, **body_for(path, max_tokens=5), **fields}
        fresh = await found.ask(path, body, TOKENS)
        assert fresh.status == 200
        assert not any(message.startswith((b":=", b":+")) for message in fresh.messages)
        refused = await found.ask(path, body, {**TOKENS, "x-aibrix-resume": "100"})
        assert (refused.status, refused.headers["x-aibrix-resume"]) == (409, "refused")
        assert sum(engine.stats().running for engine in found.engines) == 0


@pytest.mark.parametrize("ids", ["1" * 9, "20,20,20,20,20,20"])
async def test_ids_that_the_request_cannot_have_made_are_refused(ids: str) -> None:
    async with engines() as found:
        body = {"stream": True, **body_for(COMPLETIONS, max_tokens=5)}
        refused = await found.ask(COMPLETIONS, body, {**TOKENS, "x-aibrix-resume": ids})
        assert (refused.status, refused.headers["x-aibrix-resume"]) == (409, "refused")


async def test_a_chat_whose_tools_are_switched_off_is_carried() -> None:
    async with engines() as found:
        body = chat_body(tools=[{"type": "function"}], tool_choice="none", max_tokens=8)
        await assert_unbroken(found.ask, CHAT, body)


async def test_a_stream_cut_by_its_engine_s_end_goes_on_elsewhere() -> None:
    gate = Gate(steps=4)
    dying, other = make_engine(sleep=gate), make_engine()
    await dying.start()
    await other.start()
    body = {"stream": True, **chat_body(max_tokens=12, ignore_eos=True)}
    apps = [ReplicaApp(engine.openai_app(), paths=PATHS) for engine in (dying, other)]
    asked = asyncio.create_task(ask_app(apps[0], CHAT, body, TOKENS))
    await until(lambda: dying.stats().generation_tokens_total == 4)
    await dying.stop()
    first = await asked
    assert first.broken
    prefix = Reading(first.messages)
    whole = (await ask_app(apps[1], CHAT, body, TOKENS)).reading()
    rest = (await ask_app(apps[1], CHAT, body, resume(prefix))).reading()
    assert 0 < len(prefix.ids) < len(whole.ids)
    assert prefix.ids + rest.ids == whole.ids
    assert prefix.text + rest.text == whole.text
    assert rest.ends == whole.ends
    await other.stop()


async def test_a_long_answer_s_ids_fit_through_the_listener() -> None:
    def replica(app: Any) -> ReplicaApp:
        return ReplicaApp(app, paths=PATHS)

    async with serving(wrap=replica, max_model_len=40_000, kv_blocks=4000) as served:
        source = tokens.TokenSource("tiny", tokens.encode("hello"), seed="")
        ids = [source.next(may_end=False) for _ in range(20_000)]
        body = {"prompt": "hello", "max_tokens": 20_003, "ignore_eos": True, "stream": True}
        headers = {**TOKENS, "x-aibrix-resume": ",".join(map(str, ids))}
        response = await served.post(COMPLETIONS, body, **headers)
        assert response.status_code == 200, response.text
        first, *_, done = response.content.split(b"\n\n")[:-1]
        assert first == b":=%d,0\n:" % len(tokens.encode("hello"))
        assert done == b"data: [DONE]"
