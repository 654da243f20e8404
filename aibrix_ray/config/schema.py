"""JSON Schema of the whole file, for editors.

A looser twin of `file.py`: it knows no rule between fields, so what it accepts may still be refused
there; what it refuses is always wrong.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from aibrix_ray.config import serve_keys
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.config.group import GroupArgs

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAME = {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 63}


def json_schema() -> dict[str, Any]:
    """Return the schema of a file as plain data."""
    models = [(model, "validation") for model in (GatewayArgs, GatewayUserConfig, GroupArgs)]
    _, parts = models_json_schema(models)  # type: ignore[arg-type]
    definitions = parts["$defs"]
    # `kind` may be left out for vLLM only; without this, {} would be both kinds and match neither.
    definitions["SimulatedEngineConfig"]["required"] = ["kind"]
    return {
        "$schema": _DIALECT,
        "title": "aibrix_ray installation",
        "description": "A Ray Serve configuration file with aibrix_ray applications.",
        "type": "object",
        "additionalProperties": False,
        "required": ["applications"],
        "properties": {
            **_any(serve_keys.TOP_KEYS),
            **{key: _mapping(known) for key, known in serve_keys.NESTED_KEYS.items()},
            "proxy_location": {"enum": list(serve_keys.PROXY_LOCATIONS)},
            "applications": {"type": "array", "items": _application()},
        },
        "$defs": definitions,
    }


def _any(names: frozenset[str]) -> dict[str, Any]:
    """Return properties that may hold anything: Serve checks them itself."""
    return {name: {} for name in sorted(names)}


def _mapping(known: frozenset[str]) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": _any(known),
    }


def _application() -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["import_path"],
        "properties": {
            **_any(serve_keys.APPLICATION_KEYS),
            "name": {"type": "string", "description": "Unique name of the application."},
            "import_path": {
                "type": "string",
                "description": f"{serve_keys.GATEWAY_PATH}, {serve_keys.GROUP_PATH} or your own.",
            },
            "route_prefix": {"type": ["string", "null"]},
            "args": {"type": "object"},
            "deployments": {"type": "array", "items": {"type": "object"}},
        },
        "allOf": [
            _if_import_path(serve_keys.GATEWAY_PATH, "GatewayArgs", _gateway_deployments()),
            _if_import_path(serve_keys.GROUP_PATH, "GroupArgs", {"maxItems": 0}),
        ],
    }


def _if_import_path(path: str, arguments: str, deployments: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {
        "name": _NAME,
        "args": {"$ref": f"#/$defs/{arguments}"},
        "deployments": deployments,
    }
    required = ["name"]
    if path == serve_keys.GROUP_PATH:
        own["route_prefix"] = {"type": "null"}
        required = ["name", "args", "route_prefix"]
    return {
        "if": {"properties": {"import_path": {"const": path}}, "required": ["import_path"]},
        "then": {"properties": own, "required": required},
    }


def _gateway_deployments() -> dict[str, Any]:
    known = serve_keys.DEPLOYMENT_KEYS.difference(serve_keys.GATEWAY_OWNS)
    return {
        "maxItems": 1,
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                **_any(known),
                "name": {"const": serve_keys.GATEWAY_DEPLOYMENT},
                "user_config": {"$ref": "#/$defs/GatewayUserConfig"},
            },
        },
    }
