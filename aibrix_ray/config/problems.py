"""Turns what pydantic found wrong into `ConfigError`: where, what was found, expected, the way out.

Also says what to do about YAML's own surprises: `no` that became false, `1e3` that stayed text, an
empty value that is not the default.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from aibrix_ray.config.engine import ENGINES
from aibrix_ray.config.part import REFUSED, Part
from aibrix_ray.config.path import Path, render
from aibrix_ray.errors import ConfigError

P = TypeVar("P", bound=Part)

#: the tags that pydantic puts into an error's place for the kinds of engine.
_TAGS = {f"<{kind}>": engine for kind, engine in ENGINES.items()}


class _Nothing:
    """Stands for a value that is not there, in messages."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING = _Nothing()


def check_part(model: type[P], data: object, path: Path) -> tuple[P | None, list[ConfigError]]:
    """Return the model of `data`, or None and everything that is wrong with it."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, problems_of(error, model, path)


def problems_of(error: ValidationError, model: type[Part], path: Path) -> list[ConfigError]:
    """Return a `ConfigError` for each thing that pydantic found wrong, in the order of the fields.

    Args:
        error: what `model.model_validate` raised.
        model: the model that was filled.
        path: where the model's data stands in the file.
    """
    return [
        _problem(details, model, path)
        for details in error.errors(include_url=False)
        # Only says that another field, which is in the list, is wrong.
        if details["type"] != "default_factory_not_called"
    ]


def unknown_key(path: Path, value: object, known: Iterable[str], *, hint: str = "") -> ConfigError:
    """Return the error for a key that nobody reads, with the nearest valid name."""
    names = sorted(known)
    return ConfigError(
        path=render(path),
        value=value,
        expected=f"one of the keys {', '.join(names)}",
        hint=hint or did_you_mean(path[-1], names) or "remove the key",
    )


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the hint that names the valid name nearest to `name`, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _problem(details: ErrorDetails, model: type[Part], base: Path) -> ConfigError:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = (*base, *(part for part in details["loc"] if part not in (*_TAGS, "[key]")))
    owner, field = _find(model, details["loc"])
    if kind == REFUSED:
        return ConfigError(
            path=render((*path, *context["field"])),
            value=context["value"],
            expected=context["expected"],
            hint=context["hint"],
        )
    if kind == "extra_forbidden" and owner is not None:
        return unknown_key(path, value, owner.model_fields)
    if kind == "union_tag_invalid" and isinstance(value, Mapping):
        hint = did_you_mean(value["kind"], ENGINES)
        expected = f"one of {', '.join(ENGINES)}"
        return ConfigError(
            path=render((*path, "kind")), value=value["kind"], expected=expected, hint=hint
        )
    return ConfigError(
        path=render(path),
        value=NOTHING if kind == "missing" else value,
        expected=_expected(kind, context, details["msg"]),
        hint=_hint(kind, value, field),
    )


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    """Return what would have been right, in words of the file rather than of Python."""
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    template = _EXPECTED.get(kind)
    return template.format(**context) if template else message[:1].lower() + message[1:]


_EXPECTED = {
    "missing": "a value, because there is no default",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "tuple_type": "a list of texts",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "union_tag_invalid": "a mapping such as {{kind: vllm}}",
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def _hint(kind: str, value: object, field: FieldInfo | None) -> str:
    """Return the way out: first for YAML's surprises, else what the field means."""
    if value is None and kind.endswith("_type"):
        return _hint_for_empty(field)
    surprise = _HINTS[kind](value) if kind in _HINTS else ""
    if surprise or field is None or not field.description:
        return surprise
    return f"it means: {field.description.rstrip('.')}"


def _hint_for_empty(field: FieldInfo | None) -> str:
    if field is None or field.is_required():
        return "an empty value is null; write the value or remove the key"
    default = field.default
    if default is PydanticUndefined or isinstance(default, Part):
        return "an empty value is null, not the default; remove the key to get the default"
    shown = list(default) if isinstance(default, tuple) else default
    return f"an empty value is null, not the default; remove the key to get the default ({shown})"


def _hint_for_number(value: object) -> str:
    if isinstance(value, bool):
        return "true and false are not numbers"
    if isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    shown = str(int(number)) if number.is_integer() else str(number)
    return f"YAML reads this as a text; write {shown}, without quotes"


def _hint_for_text(value: object) -> str:
    if isinstance(value, bool):
        return "YAML reads yes, no, on, off, true and false as booleans; put the text in quotes"
    if isinstance(value, list | dict):
        return ""
    return f'put it in quotes: "{value}"'


def _hint_for_bool(value: object) -> str:
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
        return "remove the quotes"
    return "write true or false" if value in (0, 1) else ""


def _hint_for_list(value: object) -> str:
    return f"a text is never split; write a list: [{value}]" if isinstance(value, str) else ""


_HINTS = {
    "int_type": _hint_for_number,
    "float_type": _hint_for_number,
    "string_type": _hint_for_text,
    "bool_type": _hint_for_bool,
    "tuple_type": _hint_for_list,
}


def _find(model: type[Part], loc: tuple[int | str, ...]) -> tuple[type[Part] | None, Any]:
    """Return the model that holds the last step of `loc`, and that step's field if there is one."""
    here: Any = model
    owner: type[Part] | None = None
    field: FieldInfo | None = None
    for step in loc:
        if step in _TAGS:
            here, owner, field = _TAGS[str(step)], None, None
        elif isinstance(here, type) and issubclass(here, Part):
            owner, field = here, here.model_fields.get(str(step))
            here = _bare(field.annotation) if field else None
        elif get_origin(here) is dict and step != "[key]":
            owner, field, here = None, None, _bare(get_args(here)[1])
        elif step != "[key]":
            owner, field, here = None, None, None
    return owner, field


def _bare(annotation: Any) -> Any:
    """Return the annotation without `Annotated` and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not types.NoneType]
        return _bare(kinds[0]) if len(kinds) == 1 else annotation
    return annotation
