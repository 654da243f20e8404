"""The OpenAPI document of the endpoints that the gateway answers itself, made from one table.

Forwarded paths are not in it: those are OpenAI's and vLLM's, whose own documents describe them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aibrix_ray import __version__

_JSON = "application/json"
_TEXT = "text/plain"

_Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint says with one status."""

    description: str
    schema: _Schema = field(default_factory=lambda: {"type": "string"})
    media_type: str = _JSON


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path; `{name}` in the path is a parameter of it.

    `query` holds the schemas of the query's optional parameters, `body` that of a JSON body. Errors
    are in OpenAI's shape; `errors` lists their statuses.
    """

    path: str
    summary: str
    answers: Mapping[int, Answer]
    method: str = "get"
    query: Mapping[str, _Schema] = field(default_factory=dict)
    body: _Schema | None = None
    errors: tuple[int, ...] = ()
    needs_admin_key: bool = False


def _object(**properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


_STRING: _Schema = {"type": "string"}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_MODEL = _object(
    id=_STRING, object={"const": "model"}, created=_COUNT, owned_by=_STRING, root=_STRING
)
_READY = _object(
    status={"enum": ["ready", "starting", "draining"]},
    ready_replicas={"type": "object", "additionalProperties": _COUNT},
)
_ERROR = _object(
    error=_object(
        message=_STRING,
        type=_STRING,
        param={"type": ["string", "null"]},
        code=_STRING,
    )
)

#: What `owned.py` serves to everybody.
OWNED = (
    Endpoint(
        "/v1/models",
        "List the models, and the aliases of those that run.",
        {
            200: Answer(
                "The models.",
                _object(object={"const": "list"}, data={"type": "array", "items": _MODEL}),
            )
        },
        errors=(401, 503),
    ),
    Endpoint(
        "/v1/models/{model}",
        "Look a model or an alias up. A name may hold slashes.",
        {200: Answer("The model.", _MODEL)},
        errors=(401, 403, 404, 503),
    ),
    Endpoint(
        "/healthz",
        "Tell that the process answers.",
        {200: Answer("It does.", _object(status={"const": "ok"}))},
    ),
    Endpoint(
        "/readyz",
        "Tell whether requests should be sent here, and how many replicas each model has ready.",
        {
            200: Answer("They should.", _READY),
            503: Answer("They should not: it starts or drains.", _READY),
        },
    ),
    Endpoint(
        "/metrics",
        "Metrics in Prometheus' text format.",
        {200: Answer("The metrics.", media_type=_TEXT)},
        query={"scope": {"enum": ["node", "process"], "default": "node"}},
        errors=(400,),
    ),
    Endpoint(
        "/-/healthz",
        "Readiness as KubeRay asks for it.",
        {
            200: Answer("`success`", media_type=_TEXT),
            503: Answer("`not ready`", media_type=_TEXT),
        },
    ),
    Endpoint(
        "/-/routes",
        "Routes as KubeRay asks for them.",
        {
            200: Answer(
                "Prefix to application.", {"type": "object", "additionalProperties": _STRING}
            )
        },
    ),
    Endpoint(
        "/openapi.json",
        "This document.",
        {200: Answer("The document.", {"type": "object"})},
    ),
)


def document(endpoints: Iterable[Endpoint] = OWNED) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these endpoints."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aibrix_ray gateway: its own endpoints",
            "version": __version__,
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"AdminKey": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": _operation_id(endpoint),
        "parameters": [
            *(_parameter(name, "path", _STRING) for name in re.findall(r"{(\w+)}", endpoint.path)),
            *(_parameter(name, "query", schema) for name, schema in endpoint.query.items()),
        ],
        "responses": {
            **{str(status): _response(answer) for status, answer in endpoint.answers.items()},
            **{str(status): _error() for status in endpoint.errors},
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(_JSON, endpoint.body)}
    if endpoint.needs_admin_key:
        operation["security"] = [{"AdminKey": []}]
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    words: list[str] = re.findall(r"\w+", endpoint.path)
    return "_".join([endpoint.method, *words])


def _parameter(name: str, place: str, schema: _Schema) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _response(answer: Answer) -> dict[str, Any]:
    content = _content(answer.media_type, answer.schema)
    return {"description": answer.description, "content": content}


def _error() -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/Error"}
    return {"description": "An error in OpenAI's shape.", "content": _content(_JSON, reference)}


def _content(media_type: str, schema: _Schema) -> dict[str, Any]:
    return {media_type: {"schema": schema}}
