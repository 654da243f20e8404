from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.kuberay import to_yaml

#: Texts that a reader of YAML 1.1 or 1.2 may take for something else when they are not quoted.
AMBIGUOUS = [
    *("1e3", "0o17", "0x1F", "1_000", "12:30", ".5", "+1", "-1", "2026-11-25", "1.0"),
    *("y", "N", "Yes", "off", "true", "Null", "~", "", ".nan", "inf", "<<", "="),
    *("a: b", "a #b", "#a", " a", "a ", "-", "- a", "*a", "&a", "!a", "%a", "@a", "`a", "a:"),
]
PLAIN = ["aibrix_ray:gateway", "meta-llama/Llama-3.1-8B-Instruct", "cpu", "/models/a_b", "HF_TOKEN"]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_what_could_be_taken_for_something_else_is_quoted(text: str) -> None:
    assert to_yaml({"key": text}) == f'key: "{text}"\n'
    if text:  # PyYAML writes an empty key as a complex one: odd, and read alike everywhere
        assert to_yaml({text: 1}) == f'"{text}": 1\n'


@pytest.mark.parametrize("text", PLAIN)
def test_plain_words_are_not_quoted(text: str) -> None:
    assert to_yaml({"key": text}) == f"key: {text}\n"


def test_the_order_of_keys_is_kept_and_items_are_indented() -> None:
    assert to_yaml({"b": [{"z": 1, "a": 2}], "a": {}}) == "b:\n  - z: 1\n    a: 2\na: {}\n"


def test_a_value_that_occurs_twice_is_written_twice() -> None:
    shared = {"a": 1}
    assert to_yaml({"x": shared, "y": [shared]}).count("a: 1") == 2


def test_a_text_of_several_lines_is_a_literal_block() -> None:
    assert to_yaml({"text": "a: 1\nb: 2\n"}) == "text: |\n  a: 1\n  b: 2\n"


def test_a_long_line_is_not_wrapped() -> None:
    assert to_yaml({"key": "word " * 100 + "end"}).count("\n") == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.dictionaries(st.text(), VALUES, max_size=4))
def test_everything_is_read_back_as_it_was_even_from_within_a_literal_block(
    data: dict[str, Any],
) -> None:
    inner = to_yaml(data)
    assert yaml.safe_load(inner) == data
    outer = to_yaml({"serveConfigV2": inner})
    assert yaml.safe_load(outer) == {"serveConfigV2": inner}
    if "\n" in inner.rstrip("\n"):
        assert outer.startswith("serveConfigV2: |")
