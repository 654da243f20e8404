"""The language of the simulated engine: lossless, deterministic, and a pure function."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.engines import simulated_tokens as tokens
from aibrix_ray.engines.simulated_tokens import END, TokenSource, decode, encode
from aibrix_ray.engines.simulated_words import WORDS


def continuation(prompt: list[int], count: int, *, model: str = "m", seed: str = "") -> list[int]:
    source = TokenSource(model, prompt, seed=seed)
    return [source.next(may_end=False) for _ in range(count)]


@given(st.text())
def test_a_text_survives_its_tokens(text: str) -> None:
    assert decode(encode(text)) == text


@pytest.mark.parametrize(
    "text", ["", " ", "naïve  café\n\t", "日本語 the 🎉", " the of and", "a\0b"]
)
def test_texts_of_every_kind_survive_their_tokens(text: str) -> None:
    assert decode(encode(text)) == text


def test_the_vocabulary_is_distinct_short_words() -> None:
    assert len(set(WORDS)) == len(WORDS) > 900
    assert all(word.isalpha() and word.islower() and len(word) <= 8 for word in WORDS)


def test_a_known_word_is_one_token_and_others_are_pieces() -> None:
    assert len(encode(" the water was cold")) == 4
    assert len(encode(" tokenizer")) == 4
    assert max(encode("日")) < tokens.VOCABULARY


def test_what_the_model_says_is_read_back_as_the_same_tokens() -> None:
    made = continuation(encode("tell me"), 200)
    assert encode(decode(made)) == made


def test_a_conversation_begins_the_next_one() -> None:
    turns = [("system", "be brief"), ("user", "hello"), ("assistant", " yes"), ("user", "why?")]
    first, second = tokens.encode_chat(turns[:2]), tokens.encode_chat(turns)
    assert second[: len(first)] == first


@given(st.lists(st.integers(0, tokens.VOCABULARY - 1), min_size=1, max_size=40), st.integers(0, 30))
def test_a_continuation_goes_on_as_if_it_had_never_stopped(prompt: list[int], made: int) -> None:
    whole = continuation(prompt, 31)
    assert continuation(prompt + whole[:made], 31 - made) == whole[made:]


def test_the_end_comes_at_the_same_place_for_a_continuation() -> None:
    def until_end(prompt: list[int]) -> list[int]:
        source, found = TokenSource("m", prompt, seed=""), [-1]
        while found[-1] != END:
            found.append(source.next(may_end=True))
        return found[1:]

    prompt = encode("once upon a time?")
    whole = until_end(prompt)
    assert len(whole) > 2
    assert until_end(prompt + whole[:2]) == whole[2:]


def test_model_seed_and_every_token_matter() -> None:
    prompt = encode("once upon a time")
    base = continuation(prompt, 8)
    assert continuation(prompt, 8, model="m2") != base
    assert continuation(prompt, 8, seed="1") != base
    assert continuation([prompt[0] + 1, *prompt[1:]], 8) != base
    assert continuation(prompt, 8) == base


def test_tokens_are_the_same_in_every_process() -> None:
    code = (
        "from aibrix_ray.engines.simulated_tokens import *;"
        "s = TokenSource('m', encode('hello there'), seed='7');"
        "print([s.next(may_end=False) for _ in range(5)])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == str(continuation(encode("hello there"), 5, seed="7"))


def test_an_answer_never_begins_with_its_end_and_ends_about_as_often_as_said() -> None:
    lengths = []
    for number in range(2000):
        source = TokenSource("m", tokens.encode_chat([("user", str(number))]), seed="")
        length = 0
        while source.next(may_end=True) != END:
            length += 1
        lengths.append(length)
    assert min(lengths) > 0
    assert sum(lengths) / 2000 == pytest.approx(tokens.MEAN_ANSWER_TOKENS, rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_logprobs_are_those_of_a_distribution_and_the_made_token_is_likeliest(count: int) -> None:
    source = TokenSource("m", [20], seed="")
    for _ in range(50):
        token = source.next(may_end=False)
        row = tokens.top_logprobs(token, source.bits, count)
        values = [value for _, value in row]
        assert row[0][0] == token
        assert len({token for token, _ in row}) == count
        assert values == sorted(values, reverse=True)
        assert sum(math.exp(value) for value in values) <= 1.0


@pytest.mark.parametrize("dimensions", [1, 64, 100])
def test_embeddings_are_unit_vectors_that_tell_texts_apart(dimensions: int) -> None:
    one, two = (tokens.embed("m", encode(text), dimensions=dimensions) for text in ("a b", "b a"))
    assert len(one) == dimensions
    assert sum(value * value for value in one) == pytest.approx(1.0)
    assert one == tokens.embed("m", encode("a b"), dimensions=dimensions)
    assert dimensions == 1 or one != two
