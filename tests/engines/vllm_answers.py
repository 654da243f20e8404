"""Answers as vLLM writes them, and JSON that tries to be taken for what is cleaned."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from aibrix_ray.engines.answer_nulls import ABSENT, FIRST_PIECE

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
RESPONSES = "/v1/responses"


def compact(value: object) -> bytes:
    """Return JSON as vLLM writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


# Texts that look like what is taken out, in all the ways that a string can.
POISON = st.sampled_from(
    [piece for name in ABSENT for piece in (name, f',"{name}":null', f'{{"a":1,"{name}":null}}')]
    + ['"', "\\", '\\"', ",", ":null", ',"logprobs":{"content":[', "\n\ndata: ", "null"]
)
TEXTS = st.lists(POISON | st.text(max_size=8), max_size=4).map("".join)
KEYS = st.sampled_from([*ABSENT, *FIRST_PIECE, "a", "content", "finish_reason"]) | TEXTS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=30,
)


def error(message: str, kind: str = "BadRequestError", **more: Any) -> bytes:
    return compact({"error": {"message": message, "type": kind, "param": None, "code": 400} | more})
