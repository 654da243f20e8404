"""Which of vLLM's requests are carried over, decided on stand-ins; vLLM itself is not imported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aibrix_ray.engines import vllm_carrying as carrying


class Delegating:
    """Stands for vLLM's parser of that name."""


def parser(*, reasoning: bool = False, streams: bool = False, other: bool = False) -> Any:
    members = {
        "reasoning_parser_cls": object if reasoning else None,
        "tool_parser_cls": SimpleNamespace(engine_based_streaming=streams),
    }
    return type("_Parser", (object if other else Delegating,), members)


def chat(**fields: Any) -> Any:
    plain = {"echo": False, "use_beam_search": False, "tool_choice": "none"}
    return SimpleNamespace(**(plain | fields))


@pytest.mark.parametrize(
    ("request_", "parser_", "carried"),
    [
        (chat(), None, True),
        (chat(tool_choice="auto"), None, True),
        (chat(echo=True), None, False),
        (chat(use_beam_search=True), None, False),
        (chat(), parser(), True),
        (chat(tool_choice="auto"), parser(), False),
        (chat(tool_choice=None), parser(), False),
        (chat(), parser(streams=True), False),
        (chat(), parser(reasoning=True), False),
        (chat(), parser(other=True), False),
    ],
)
def test_a_chat_is_carried_if_its_text_passes_unparsed(
    request_: Any, parser_: Any, carried: bool
) -> None:
    assert (carrying.chat_obstacle(request_, parser_, Delegating) is None) == carried


def config(*, processors: Any = None, watermark: Any = None, encoder: bool = False) -> Any:
    model = SimpleNamespace(logits_processors=processors, is_encoder_decoder=encoder)
    return SimpleNamespace(model_config=model, watermark_config=watermark)


def test_an_engine_that_remembers_more_than_ids_carries_nothing() -> None:
    def load(named: Any) -> list[Any]:
        return [] if named is None else list(named)

    assert carrying.engine_obstacle(config(), load) is None
    for other in (config(processors=["m:P"]), config(watermark=object()), config(encoder=True)):
        assert carrying.engine_obstacle(other, load)
    assert carrying.engine_obstacle(config(), lambda named: ["a plug-in's"])


class Parameters:
    """Stands for vLLM's sampling parameters, with one that nobody has looked at."""

    __struct_fields__ = ("temperature", "n", "bad_words", "brand_new")

    def __init__(self, **fields: Any) -> None:
        self.temperature = 1.0
        self.n = 1
        self.bad_words: list[str] = []
        self.brand_new: Any = None
        self.__dict__ |= fields


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, None),
        ({"temperature": 0.0}, None),
        ({"n": 2}, "n"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"brand_new": 0}, "brand_new"),
    ],
)
def test_a_parameter_that_nobody_has_looked_at_is_not_carried(
    fields: dict[str, Any], named: str | None
) -> None:
    defaults = carrying.default_parameters(Parameters)
    found = carrying.parameter_obstacle(Parameters(**fields), defaults)
    assert found == (named and f"its {named} depends on more than token ids")


@pytest.mark.parametrize(
    ("ids", "most", "fine"),
    [([], 3, True), ([1, 2, 3], 3, True), ([1] * 4, 3, False), ([9], 3, True), ([10], 3, False)],
)
def test_ids_must_be_the_request_s_own(ids: list[int], most: int, fine: bool) -> None:
    params = SimpleNamespace(max_tokens=most)
    assert (carrying.ids_obstacle(ids, params, vocabulary=10) is None) == fine


def test_the_rest_of_a_request_leaves_the_request_alone() -> None:
    params = SimpleNamespace(max_tokens=9, min_tokens=2)
    request = SimpleNamespace(request_id="r", prompt_token_ids=[1, 2], sampling_params=params)
    rest = carrying.remaining_request(request, [3, 4, 5])
    assert (rest.request_id, rest.prompt_token_ids) == ("r", [1, 2, 3, 4, 5])
    assert (rest.sampling_params.max_tokens, rest.sampling_params.min_tokens) == (6, 0)
    assert request.prompt_token_ids == [1, 2]
    assert (params.max_tokens, params.min_tokens) == (9, 2)
