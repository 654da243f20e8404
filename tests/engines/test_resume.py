"""The lines of token ids and the answers to a resumed request, without an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.engines.meta import ReplicaApp, current_carry, record_usage
from aibrix_ray.engines.resume import Carry, parse_ids
from tests.engines.carried import CHAT, TOKENS, Answer, Reading, ask_app

EVENT = b"data: {}\n\n"
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (b"", []),
        (b"0", [0]),
        (b"12,345,6", [12, 345, 6]),
        (b"12, 3", None),
        (b"12,", None),
        (b"-1", None),
        (b"+1", None),
        (b"1_0", None),
        ("²".encode("latin-1"), None),
        (b"9" * 5000, None),
        (b"refused", None),
    ],
)
def test_ids_are_decimal_numbers_and_commas(value: bytes, ids: list[int] | None) -> None:
    assert parse_ids(value) == ids


@given(st.lists(st.integers(0, 2**31)))
def test_ids_survive_the_header(ids: list[int]) -> None:
    assert parse_ids(",".join(map(str, ids)).encode()) == ids


@given(st.lists(st.lists(st.integers(0, 300_000), max_size=4), max_size=8), st.booleans())
def test_all_ids_come_once_and_in_order(events: list[list[int]], opening: bool) -> None:
    carry = Carry()
    carry.permit(opening=opening)
    messages = [EVENT] if opening else []
    if opening:
        carry.add([7])
        assert carry.lines(EVENT) == b""
    carry.begin(prompt_tokens=17, cached_tokens=16)
    for ids in events:
        carry.add(ids)
        messages.append(carry.lines(EVENT) + EVENT)
    messages.append(carry.lines(DONE) + DONE)
    read = Reading(messages)
    assert read.ids == [7] * opening + [token for ids in events for token in ids]
    assert read.prompt == (17, 16)


def test_the_prompt_stands_before_the_first_ids_and_once() -> None:
    carry = Carry()
    carry.begin(prompt_tokens=17, cached_tokens=0)
    carry.add([12])
    assert carry.lines(EVENT) == b":=17,0\n:+12\n"
    carry.begin(prompt_tokens=18, cached_tokens=1)
    carry.add([3, 4])
    carry.add([5])
    assert carry.lines(EVENT) == b":+3,4,5\n"
    assert carry.lines(EVENT) == b""


def test_a_comment_of_the_engine_gets_no_ids() -> None:
    carry = Carry()
    carry.add([12])
    assert carry.lines(b": keep-alive\n\n") == b""
    assert carry.lines(EVENT) == b":+12\n"


@pytest.mark.parametrize(
    ("told", "found", "cached"), [(None, 16, 16), (None, 40, 17), (None, None, 0), (0, 16, 0)]
)
def test_cached_tokens_are_those_of_the_prompt(
    told: int | None, found: int | None, cached: int
) -> None:
    assert Carry([1], told).cached_of(found, prompt_tokens=17) == cached


async def answer(serve: Callable[[Any, Carry | None], Any], **headers: str) -> Answer:
    """Let a replica serve by `serve(send, carry)`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await serve(send, current_carry())

    return await ask_app(ReplicaApp(app, paths=[CHAT]), CHAT, {}, headers)


async def start(send: Any, kind: str = "text/event-stream", status: int = 200) -> None:
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def body(send: Any, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def test_nobody_carries_what_nobody_asked_for() -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        assert carry is None
        await start(send)
        await body(send, EVENT + DONE, more=False)

    assert (await answer(serve)).messages == [EVENT + DONE]
    assert (await answer(serve, **{"x-aibrix-meta": "1"})).messages == [EVENT + DONE]


async def test_a_stream_that_is_not_carried_has_no_lines() -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        assert carry is not None
        assert carry.decide("it has several choices")
        await start(send)
        record_usage(prompt_tokens=1)
        await body(send, EVENT + DONE, more=False)

    assert (await answer(serve, **TOKENS)).messages == [
        b': aibrix {"usage":[1,0,0]}\n\n' + EVENT + DONE
    ]


async def test_the_usage_comment_stands_behind_the_ids() -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        assert carry is not None
        assert carry.decide(None)
        await start(send)
        carry.begin(prompt_tokens=1, cached_tokens=0)
        carry.add([5])
        record_usage(prompt_tokens=1, completion_tokens=1)
        await body(send, EVENT + DONE, more=False)

    lines = b':=1,0\n:+5\n: aibrix {"usage":[1,0,1]}\n\n'
    assert (await answer(serve, **TOKENS)).messages == [lines + EVENT + DONE]


async def test_what_the_client_has_is_not_sent_again() -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        assert carry is not None
        assert carry.before == [3, 4]
        assert carry.cached_tokens == 16
        carry.permit(opening=True)
        assert carry.decide(None)
        await start(send)
        await body(send, b'data: {"role"}\n\n')
        carry.begin(prompt_tokens=17, cached_tokens=16)
        carry.replaying = False
        carry.add([5])
        await body(send, EVENT)
        await body(send, DONE)
        await body(send, b"", more=False)

    headers = {**TOKENS, "x-aibrix-resume": "3,4", "x-aibrix-cached": "16"}
    found = await answer(serve, **headers)
    assert found.messages == [b":=17,16\n:\n\n", b":+5\n" + EVENT, DONE]
    assert not found.broken


@pytest.mark.parametrize("status", [200, 409, 500])
async def test_what_cannot_be_continued_is_refused_whatever_the_engine_says(status: int) -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        assert carry is not None
        assert not carry.decide("it has several choices")
        await start(send, "application/json", status)
        await body(send, b"something else", more=False)

    found = await answer(serve, **TOKENS, **{"x-aibrix-resume": "1"})
    assert found.status == 409
    assert found.headers["x-aibrix-resume"] == "refused"
    assert found.messages == [b"it has several choices"]


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_an_engine_that_knows_nothing_of_it_does_not_begin_anew(kind: str) -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        await start(send, kind)
        await body(send, EVENT)
        await body(send, DONE, more=False)

    found = await answer(serve, **TOKENS, **{"x-aibrix-resume": "1"})
    assert (found.status, found.headers["x-aibrix-resume"]) == (409, "refused")


async def test_an_engine_s_own_error_stays_what_it_is() -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        await start(send, "application/json", 404)
        await body(send, b"no such model", more=False)

    found = await answer(serve, **TOKENS, **{"x-aibrix-resume": "1"})
    assert (found.status, found.messages) == (404, [b"no such model"])


async def test_ids_that_are_none_are_refused_before_the_engine() -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        raise AssertionError("the engine was asked")

    found = await answer(serve, **TOKENS, **{"x-aibrix-resume": "1,x"})
    assert (found.status, found.headers["x-aibrix-resume"]) == (409, "refused")


@pytest.mark.parametrize("carried", [True, False])
async def test_a_carried_stream_whose_engine_died_is_cut_and_tells_no_error(carried: bool) -> None:
    async def serve(send: Any, carry: Carry | None) -> None:
        assert carry is not None
        carry.decide(None if carried else "it has several choices")
        await start(send)
        await body(send, EVENT)
        carry.broken = True
        await body(send, b'data: {"error"}\n\n')
        await body(send, b"", more=False)

    found = await answer(serve, **TOKENS)
    assert found.broken == carried
    assert found.messages == ([EVENT] if carried else [EVENT, b'data: {"error"}\n\n'])
