"""The event stream's cutter, wherever packets split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.dataplane import sse
from aibrix_ray.dataplane.sse import DONE, EventStream
from aibrix_ray.types import Usage

META = b': aibrix {"usage":[7,2,5]}\n\n'
USAGE = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=5)

STREAMS = {
    "meta before the end": [b'data: {"a":1}\n\n', b'data: {"b":2}\n\n', META, DONE],
    "meta at the start": [META, b"data: a\n\n", DONE],
    "meta last": [b"data: a\n\n", DONE, META],
    "meta alone": [META],
    "twice": [b"data: a\n\n", b': aibrix {"usage":[1,1,1]}\n\n', b"data: b\n\n", META, DONE],
    "among comments": [b": ping\n\n", b": aibri\n\n", META, b":\n\n", b"data: x\n\n", DONE],
    "typed events": [b"event: message\nid: 7\ndata: a\ndata: b\n\n", META, b"retry: 1\n\n"],
    "a mark in the text": [b'data: {"t":": aibrix {}"}\n\n', b"data: : aibrix\n\n", META, DONE],
}


def feed(*pieces: bytes) -> tuple[list[bytes], EventStream]:
    stream = EventStream()
    return [stream.feed(piece) for piece in pieces], stream


@pytest.mark.parametrize("events", STREAMS.values(), ids=STREAMS)
def test_wherever_one_packet_ends_the_client_gets_the_same(events: list[bytes]) -> None:
    data = b"".join(events)
    expected = b"".join(e for e in events if not e.startswith(b": aibrix"))
    for cut in range(len(data) + 1):
        outputs, stream = feed(data[:cut], data[cut:])
        assert b"".join(outputs) == expected, cut
        assert stream.usage == USAGE, cut
        assert stream.flush() == b""


@pytest.mark.parametrize("events", STREAMS.values(), ids=STREAMS)
def test_wherever_two_packets_end_the_client_gets_the_same(events: list[bytes]) -> None:
    data = b"".join(events)
    expected = b"".join(e for e in events if not e.startswith(b": aibrix"))
    for first in range(0, len(data) + 1, 2):
        for second in range(first, len(data) + 1, 3):
            outputs, stream = feed(data[:first], data[first:second], data[second:])
            assert b"".join(outputs) == expected, (first, second)
            assert stream.usage == USAGE, (first, second)


@pytest.mark.parametrize("events", STREAMS.values(), ids=STREAMS)
def test_byte_by_byte_each_event_leaves_whole_and_with_its_last_byte(events: list[bytes]) -> None:
    stream = EventStream()
    for event in events:
        outputs = [stream.feed(event[i : i + 1]) for i in range(len(event))]
        assert outputs[:-1] == [b""] * (len(event) - 1)
        assert outputs[-1] == (b"" if event.startswith(b": aibrix") else event)
    assert stream.usage == USAGE


@given(
    texts=st.lists(st.text(alphabet="ab :{}\\é\r", max_size=12), max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    at=st.integers(0, 6),
)
def test_any_events_in_any_packets_pass_unchanged(
    texts: list[str], cuts: list[int], at: int
) -> None:
    events = [b"data: " + text.rstrip("\r").encode() + b"\n\n" for text in texts]
    expected = b"".join(events)
    data = b"".join([*events[:at], META, *events[at:]])
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream = EventStream()
    output = b"".join(stream.feed(data[start:end]) for start, end in pairwise(bounds))
    assert output + stream.flush() == expected
    assert stream.usage == USAGE


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_an_event_with_any_line_ends_leaves_at_once(end: bytes) -> None:
    outputs, stream = feed(b"data: a" + end, b"data: b" + end, b"data: c" + end + b"data: d")
    assert outputs == [b"data: a" + end, b"data: b" + end, b"data: c" + end]
    assert stream.feed(end) == b"data: d" + end


def test_crlf_events_split_within_their_line_ends_arrive_unchanged() -> None:
    data = b"data: a\r\n\r\nevent: x\r\ndata: b\r\n\r\n"
    for cut in range(len(data) + 1):
        outputs, stream = feed(data[:cut], data[cut:])
        assert b"".join(outputs) + stream.flush() == data, cut


def test_meta_is_cut_from_a_crlf_stream_too() -> None:
    outputs, stream = feed(b"data: a\r\n\r\n" + META + b"data: [DONE]\r\n\r\n")
    assert b"".join(outputs) == b"data: a\r\n\r\ndata: [DONE]\r\n\r\n"
    assert stream.usage == USAGE


def test_coalesced_events_pass_together() -> None:
    outputs, _ = feed(b"data: a\n\ndata: b\n\n: aibrix {}\n\ndata: c\n\nda", b"ta: d\n\n")
    assert outputs == [b"data: a\n\ndata: b\n\ndata: c\n\n", b"data: d\n\n"]


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"null", b"[]", b'{"usage":[1]}', b'{"usage":["a",1,2]}', b"{", b"\xff"]
)
def test_a_private_comment_that_makes_no_sense_is_cut_all_the_same(text: bytes) -> None:
    outputs, stream = feed(META + b": aibrix " + text + b"\n\ndata: a\n\n")
    assert outputs == [b"data: a\n\n"]
    assert stream.usage == USAGE


def test_what_is_held_back_at_the_regular_end_is_given_out() -> None:
    outputs, stream = feed(b"data: a\n\ndata: no line end")
    assert outputs == [b"data: a\n\n"]
    assert stream.flush() == b"data: no line end"
    assert stream.flush() == b""


def test_the_end_of_the_stream_is_seen_in_any_packet() -> None:
    for cut in range(len(DONE)):
        _, stream = feed(b"data: a\n\n" + DONE[:cut])
        assert not stream.done
        stream.feed(DONE[cut:])
        assert stream.done


def test_what_is_no_event_for_too_long_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_MAX_EVENT_BYTES", 100)
    outputs, stream = feed(b"x" * 60, b"y" * 60, b"z\n\n")
    assert outputs == [b"", b"x" * 60 + b"y" * 60, b"z\n\n"]
    assert stream.flush() == b""
