"""What is read of a request, and how one is written to a replica."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.dataplane import FORWARDED_PATHS, wire
from aibrix_ray.errors import BadRequest

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(
    fields=st.dictionaries(st.text(max_size=8), VALUES, max_size=6),
    model=st.text(min_size=1, max_size=30),
    indent=st.sampled_from([None, 2]),
)
def test_setting_the_model_changes_the_model_and_nothing_else(
    fields: dict[str, Any], model: str, indent: int | None
) -> None:
    body = json.dumps(fields, indent=indent).encode()
    changed = json.loads(wire.with_model(body, model))
    assert changed == {**fields, "model": model}
    order = [key for key in changed if key != "model"]
    assert order == [key for key in fields if key != "model"]


@given(text=st.text(alphabet=' \t\n0123456789.eE+-"\\u00e9[]{},:tfn', max_size=20))
def test_every_other_value_keeps_its_bytes(text: str) -> None:
    try:
        json.loads(text)
        body = f'{{"x": {text}, "model": "alias"}}'.encode()
        wire.peek(body)
    except (ValueError, BadRequest):
        return
    changed = wire.with_model(body, "m")
    assert changed == b'{"x":%b,"model":"m"}' % text.strip(" \t\n").encode()


def test_a_model_is_added_where_none_was_named() -> None:
    assert wire.with_model(b"{}", 'a "model"') == b'{"model":"a \\"model\\""}'
    assert wire.with_model(b'{"model": null, "x": 1}', "m") == b'{"model":"m","x":1}'


def test_what_is_routed_on_is_read_and_the_prompt_stays_as_it_came() -> None:
    peeked = wire.peek(
        b'{"model":"m","stream":true,"max_tokens":5,"max_completion_tokens":6,"user":"u",'
        b'"messages":[ {"role":"user"} ],"prompt":"\\u00e9","input":[1, 2],"other":{}}'
    )
    assert (peeked.model, peeked.stream, peeked.max_tokens, peeked.user) == ("m", True, 5, "u")
    assert peeked.max_completion_tokens == 6
    assert bytes(peeked.messages) == b'[ {"role":"user"} ]'
    assert bytes(peeked.prompt) == b'"\\u00e9"'
    assert bytes(peeked.input) == b"[1, 2]"


def test_fields_that_are_missing_are_empty() -> None:
    peeked = wire.peek(b"{}")
    assert peeked.model is peeked.stream is peeked.user is None
    assert not bytes(peeked.messages)


@given(body=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        wire.peek(body)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-request-id", b"mine")], b"mine"),
        ([(b"x-request-id", b"bad id"), (b"x-request-id", b"good")], b"good"),
        ([(b"x-request-id", b"one"), (b"x-request-id", b"two")], b"one"),
        ([(b"x-request-id", b"~" * 128)], b"~" * 128),
    ],
)
def test_the_first_fit_request_id_is_taken(
    headers: list[tuple[bytes, bytes]], expected: bytes
) -> None:
    assert wire.identity(headers)[0] == expected


@pytest.mark.parametrize("value", [b"", b" ", b"a b", b"a\tb", b"\xc3\xa9", b"x" * 129, b"a\x7f"])
def test_an_unfit_request_id_is_replaced_by_a_new_one(value: bytes) -> None:
    first = wire.identity([(b"x-request-id", value)])[0]
    second = wire.identity([])[0]
    assert first != second
    assert wire.identity([(b"x-request-id", first)])[0] == first


def test_the_head_of_a_request_is_written_out() -> None:
    head = wire.request_head(
        "/v1/completions",
        b"a=%2F",
        [(b"host", b"evil"), (b"accept", b"*/*"), (b"x-aibrix-token", b"guess")],
        length=17,
        request_id=b"id",
        token="s3cret",
    )
    assert head == (
        b"POST /v1/completions?a=%2F HTTP/1.1\r\nhost: replica\r\ncontent-length: 17\r\n"
        b"x-aibrix-meta: 1\r\nx-request-id: id\r\nx-aibrix-token: s3cret\r\naccept: */*\r\n\r\n"
    )


def test_a_head_without_query_and_token_has_neither() -> None:
    head = wire.request_head("/score", b"", [], length=0, request_id=b"id", token="")
    assert head.startswith(b"POST /score HTTP/1.1\r\n")
    assert b"token" not in head


def test_only_inference_is_forwarded() -> None:
    assert FORWARDED_PATHS == wire.JSON_PATHS | wire.MULTIPART_PATHS
    assert not wire.JSON_PATHS & wire.MULTIPART_PATHS
    words = ("lora", "adapter", "sleep", "wake", "reset", "profile", "rpc", "metrics", "models")
    assert not [path for path in FORWARDED_PATHS if any(word in path for word in words)]


def test_a_replicas_headers_are_kept_but_for_private_and_hop_by_hop_ones() -> None:
    kept = wire.response_headers(
        [
            (b"content-type", b"a"),
            (b"set-cookie", b"1"),
            (b"set-cookie", b"2"),
            (b"x-aibrix-meta", b"{}"),
            (b"connection", b"close"),
            (b"transfer-encoding", b"chunked"),
        ],
        [(b"target-replica", b"r1")],
    )
    assert kept == [
        (b"content-type", b"a"),
        (b"set-cookie", b"1"),
        (b"set-cookie", b"2"),
        (b"target-replica", b"r1"),
    ]


def test_the_model_is_read_as_an_engine_reads_it() -> None:
    for body in (b'{"model":"a","model":"b"}', b'{"mod\\u0065l":"b"}', b'{"model" :\n"b"}'):
        assert wire.peek(body).model == json.loads(body)["model"] == "b"
        assert msgspec.json.decode(body)["model"] == "b"


@pytest.mark.parametrize(
    ("headers", "user"),
    [
        ([], None),
        ([(b"user", b"")], None),
        ([(b"user", b"bob")], "bob"),
        ([(b"x-request-id", b"r"), (b"user", b"bob")], "bob"),
    ],
)
def test_the_user_header_is_found(headers: list[tuple[bytes, bytes]], user: str | None) -> None:
    assert wire.identity(headers)[1] == user
