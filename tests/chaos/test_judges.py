"""The soak's own judges: the plan, the verdict on a stream, excuses, and memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from tests.chaos.chaos import Chaos, Event
from tests.chaos.clients import Question, judge_stream
from tests.chaos.memory import growth
from tests.chaos.schedule import Harm, plan
from tests.e2e.installation import Installation

QUESTION = Question("Hello there", 8, chat=False)


def make_stream(question: Question, *, change: Callable[[list[Any]], object] = len) -> bytes:
    words = question.answer.split(" ")[1:]
    events: list[Any] = [
        {"id": "a", "choices": [{"text": f" {word}", "finish_reason": None}]} for word in words
    ]
    events[-1]["choices"][0]["finish_reason"] = "length"
    usage = {"prompt_tokens": len(question.prompt_ids), "completion_tokens": len(words)}
    events.append({"id": "a", "choices": [], "usage": usage})
    change(events)
    lines = [b"data: " + json.dumps(event).encode() for event in events]
    return b"\n\n".join([*lines, b"data: [DONE]", b""])


def make_chaos(events: Sequence[Event] = ()) -> Chaos:
    chaos = Chaos(cast("Installation", None), (), gateways=2, replicas=3)
    chaos.start_s, chaos.events = 0.0, list(events)
    return chaos


def test_the_same_seed_is_the_same_plan_and_another_seed_another() -> None:
    assert plan(seed=7, duration_s=60.0) == plan(seed=7, duration_s=60.0)
    assert plan(seed=7, duration_s=60.0) != plan(seed=8, duration_s=60.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_minute_holds_every_harm(seed: int) -> None:
    planned = plan(seed=seed, duration_s=60.0)

    assert {entry.harm for entry in planned} == set(Harm)
    assert all(0 < entry.at_s < 60.0 and 0 <= entry.pick < 1 for entry in planned)


def test_an_undisturbed_stream_is_right_and_comments_in_it_are() -> None:
    received = make_stream(QUESTION)

    assert judge_stream(received, QUESTION) is None
    assert judge_stream(b": keep-alive\n\n" + received, QUESTION) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda events: events.pop(3), "another text"),
        (lambda events: events.insert(3, events[3]), "another text"),
        (lambda events: events[4].update(id="b"), "ids"),
        (lambda events: events[2]["choices"][0].update(finish_reason="stop"), "finish reasons"),
        (lambda events: events[-1]["usage"].update(completion_tokens=9), "usage"),
        (lambda events: events.pop(), "usage"),
        (lambda events: events.append({"error": {"code": "replica_lost"}}), "an error frame"),
    ],
    ids=["missing", "repeated", "two ids", "two ends", "miscounted", "uncounted", "error"],
)
def test_a_stream_that_is_not_right_is_named(
    change: Callable[[list[Any]], object], complaint: str
) -> None:
    assert complaint in str(judge_stream(make_stream(QUESTION, change=change), QUESTION))


def test_a_stream_that_was_cut_is_named() -> None:
    received = make_stream(QUESTION)

    assert judge_stream(received[:-20], QUESTION) == "no [DONE]"
    assert judge_stream(b"", QUESTION) == "no [DONE]"


@pytest.mark.parametrize(
    ("harm", "begun_s", "ended_s", "excused"),
    [
        (Harm.KILL_GATEWAY, 9.0, 10.5, True),
        (Harm.KILL_GATEWAY, 11.0, 12.0, True),
        (Harm.KILL_GATEWAY, 8.0, 9.9, False),
        (Harm.KILL_GATEWAY, 13.0, 14.0, False),
        (Harm.KILL_REPLICA, 9.0, 10.5, False),
        (Harm.PAUSE_GATEWAY, 9.0, 10.5, False),
    ],
)
def test_only_a_killed_gateway_excuses_and_only_around_its_end(
    harm: Harm, begun_s: float, ended_s: float, excused: bool
) -> None:
    chaos = make_chaos([Event(harm, 1, 10.0, 10.0)])

    assert chaos.excuses(begun_s, ended_s) is excused


def test_the_diary_tells_what_was_done_around_a_failure() -> None:
    chaos = make_chaos(
        [
            Event(Harm.KILL_REPLICA, 11, 5.0, 5.0),
            Event(Harm.PAUSE_GATEWAY, 12, 50.0, 53.0),
            Event(Harm.KILL_LIMITER, None, 90.0, 90.0),
        ]
    )

    assert "pid 12, 3.0 s long" in chaos.diary(55.0, 56.0)
    assert "pid 11" not in chaos.diary(55.0, 56.0)
    assert "nobody of that kind" in chaos.diary(89.0, 91.0)
    assert chaos.diary(200.0, 201.0) == "nothing was done around that time"


@pytest.mark.parametrize(("slope_bytes", "expected"), [(0, 1.0), (10, 1.2)])
def test_growth_leaves_the_warm_up_aside(slope_bytes: int, expected: float) -> None:
    warming = [(float(second), 10 * second) for second in range(20)]
    settled = [(float(second), 1000 + slope_bytes * (second - 20)) for second in range(20, 50)]

    assert growth([*warming, *settled], warm_up_s=20.0) == pytest.approx(expected, abs=0.02)


def test_growth_says_nothing_of_a_young_process() -> None:
    assert growth([(float(second), 1) for second in range(39)], warm_up_s=20.0) is None
