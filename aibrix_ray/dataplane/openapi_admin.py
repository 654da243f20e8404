"""The admin API's part of the OpenAPI document; there only where keys are on."""

from __future__ import annotations

from typing import Any

from aibrix_ray.dataplane.openapi import Answer, Endpoint
from aibrix_ray.tenants import COUNTS, NewKey, NewTenant, Rotation, TenantSettings

_STRING = {"type": "string"}
_OBJECT = {"type": "object"}
_DENIED = (401, 403, 503)


def _marked(kind: str, **fields: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that says what it is."""
    properties = {"object": {"const": kind}, **fields}
    return {"type": "object", "properties": properties, "required": list(properties)}


_KEY = _marked("api_key", id=_STRING, tenant=_STRING, state=_STRING)
_ISSUED = _marked("api_key", id=_STRING, tenant=_STRING, key=_STRING)
_TENANT = _marked("tenant", name=_STRING)


def _list_of(items: dict[str, Any], **fields: dict[str, Any]) -> dict[str, Any]:
    return _marked("list", data={"type": "array", "items": items}, **fields)


def _deleted(kind: str) -> dict[str, Any]:
    return _marked(f"{kind}.deleted", id=_STRING, deleted={"const": True})


def _endpoint(
    method: str,
    path: str,
    summary: str,
    schema: dict[str, Any],
    *,
    status: int = 200,
    errors: tuple[int, ...] = (),
    **rest: Any,
) -> Endpoint:
    return Endpoint(
        f"/admin/v1/{path}",
        summary,
        {status: Answer(summary, schema)},
        method=method,
        errors=tuple(sorted({*errors, *_DENIED})),
        needs_admin_key=True,
        **rest,
    )


_PAGE = {"after": _STRING, "limit": {"type": "integer", "minimum": 1, "maximum": 1000}}
_HAS_MORE = {"has_more": {"type": "boolean"}}

#: What `admin.py` serves to those who have an admin key.
ADMIN = (
    _endpoint(
        *("get", "keys", "List the API keys, without their text."),
        _list_of(_KEY, **_HAS_MORE),
        query={"tenant": _STRING, **_PAGE},
        errors=(400, 404),
    ),
    _endpoint(
        *("post", "keys", "Make an API key; its text is told this once."),
        _ISSUED,
        status=201,
        body=NewKey.model_json_schema(),
        errors=(400, 404, 413),
    ),
    _endpoint("get", "keys/{key}", "Look an API key up.", _KEY, errors=(404,)),
    _endpoint("delete", "keys/{key}", "Revoke an API key.", _deleted("api_key"), errors=(404,)),
    _endpoint(
        *("post", "keys/{key}/rotate", "Replace an API key; the old one works a while longer."),
        _ISSUED,
        status=201,
        body=Rotation.model_json_schema(),
        errors=(400, 404, 409, 413),
    ),
    _endpoint(
        *("get", "tenants", "List the tenants."),
        _list_of(_TENANT, **_HAS_MORE),
        query=_PAGE,
        errors=(400, 404),
    ),
    _endpoint(
        *("post", "tenants", "Make a tenant."),
        _TENANT,
        status=201,
        body=NewTenant.model_json_schema(),
        errors=(400, 409, 413),
    ),
    _endpoint("get", "tenants/{tenant}", "Look a tenant up.", _TENANT, errors=(404,)),
    _endpoint(
        *("patch", "tenants/{tenant}", "Change those of a tenant's settings that are given."),
        _TENANT,
        body=TenantSettings.model_json_schema(),
        errors=(400, 404, 413),
    ),
    _endpoint(
        *("delete", "tenants/{tenant}", "Delete a tenant; with `force` also its keys."),
        _deleted("tenant"),
        query={"force": {"enum": ["true", "false"]}},
        errors=(400, 404, 409),
    ),
    _endpoint(
        *("get", "usage", "Tell what was used, as JSON or CSV."),
        _list_of(_OBJECT | {"required": list(COUNTS)}, group_by={"type": "array"}),
        query={
            **dict.fromkeys(("tenant", "model", "since", "until", "group_by"), _STRING),
            "format": {"enum": ["json", "csv"]},
        },
        errors=(400, 404),
    ),
)
