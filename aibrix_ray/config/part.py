"""The base of every configuration model, and the way a model refuses a combination of fields.

Knows nothing of YAML or files: `problems.py` turns what is refused here into a `ConfigError`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from aibrix_ray.config.path import Path

#: Seconds in a day: the upper bound of every duration here, so that a value in ms is noticed.
DAY_S = 86_400.0

#: A YAML list of names. Never split from a string; lists are turned into tuples to stay frozen.
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]

REFUSED = "refused"


class Part(BaseModel):
    """One part of the configuration: frozen, strict, and without room for unknown keys.

    Strict means that nothing is converted: `true` is no number, `"8000"` is no integer, `8` is no
    text, and an empty value is not the default.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=False
    )


def refuse(field: Path, value: object, *, expected: str, hint: str) -> PydanticCustomError:
    """Return the error that a validator raises for a combination of fields.

    Args:
        field: where the value stands, relative to the validator that refuses; () for itself.
        value: what was found there.
        expected: what would have been right.
        hint: the way out, a sentence without a full stop.
    """
    context = {"field": field, "value": value, "expected": expected, "hint": hint}
    return PydanticCustomError(REFUSED, "expected {expected}; {hint}", context)
