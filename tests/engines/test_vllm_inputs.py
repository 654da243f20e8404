"""A long list of wrong items costs what one wrong item costs."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator, ValidationError

from aibrix_ray.engines.vllm_inputs import stop_at_first_error


def plus_one(value: Any) -> Any:
    return value + 1 if isinstance(value, int) else value


def make_model() -> type[BaseModel]:
    class Request(BaseModel):
        input: str | list[Annotated[int | dict[str, int], BeforeValidator(plus_one)]]
        user: str | None = None

    return Request


def errors_of(model: type[BaseModel], body: dict[str, Any]) -> list[Any]:
    with pytest.raises(ValidationError) as refused:
        model(**body)
    return refused.value.errors()


def test_only_the_first_wrong_item_is_told() -> None:
    model = make_model()
    body = {"input": [1, "x", "y", "z"] * 100}
    before = errors_of(model, body)
    stop_at_first_error(model, "input")
    after = errors_of(model, body)
    assert len(before) > 300
    assert len(after) == 3  # no string, and one item in two ways
    assert {error["loc"][2] for error in after if len(error["loc"]) > 2} == {1}


def test_right_bodies_and_other_fields_are_taken_as_before() -> None:
    model = make_model()
    stop_at_first_error(model, "input")
    assert model(input="x").model_dump() == {"input": "x", "user": None}
    assert model(input=[1, {"a": 2}]).model_dump()["input"] == [2, {"a": 2}]
    assert len(errors_of(model, {"input": "x", "user": 7})) == 1


@pytest.mark.parametrize("field", ["other", "user"])
def test_a_field_that_is_no_such_list_is_an_error(field: str) -> None:
    with pytest.raises(LookupError):
        stop_at_first_error(make_model(), field)
