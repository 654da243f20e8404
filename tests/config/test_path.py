from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.config.path import read, render


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("applications", 1, "args", "replicas", "max"), "applications[1].args.replicas.max"),
        (("models", "llama-3.1", "timeout_s"), 'models["llama-3.1"].timeout_s'),
        (("env", 'a"b'), 'env["a\\"b"]'),
        ((), ""),
    ],
)
def test_a_path_is_written_with_dots_and_odd_keys_in_quotes(
    path: tuple[str | int, ...], text: str
) -> None:
    assert render(path) == text


@given(st.lists(st.text(min_size=1), min_size=1))
def test_what_is_written_is_read_again(keys: list[str]) -> None:
    assert read(f"{render(keys)}=rest.of[it]") == (tuple(keys), "=rest.of[it]")
