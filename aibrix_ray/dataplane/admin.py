"""The admin API, `/admin/v1/…`: tenants, keys and usage over HTTP. For admin keys only; not hot.

Store work is done in threads. What it changes, this gateway sees at once and others within seconds.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from aibrix_ray.config.part import Part
from aibrix_ray.dataplane.forward import error_body
from aibrix_ray.errors import (
    ApiError,
    BadRequest,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    StoreUnavailable,
    whole_seconds,
)
from aibrix_ray.tenants import (
    IssuedKey,
    NewKey,
    NewTenant,
    Rotation,
    Store,
    StoreCalls,
    Tenant,
    TenantDirectory,
    TenantSettings,
    UsageQuery,
    key_data,
    parse_groups,
    parse_moment,
    tenant_data,
    to_csv,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = TypeVar("P", bound=Part)
_Handler = Callable[[Request], Awaitable[Response]]

_MAX_BODY_BYTES = 64 * 1024
_PAGE, _MAX_PAGE = 100, 1000
_MAX_USAGE_ROWS = 10_000
_MAX_TEXT = 200
#: Nothing else is asked of the store: databases differ in which odd texts they take.
_KEY_ID = re.compile(r"key_[0-9a-f]{1,28}")
_TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


def admin_routes(
    store: Store,
    directory: TenantDirectory,
    calls: StoreCalls,
    *,
    clock: Callable[[], float] = time.time,
) -> list[Route]:
    """Return the routes of the admin API. They answer every `ApiError` themselves."""
    admin = _Admin(store, directory, calls, clock)
    keys, tenants = "/admin/v1/keys", "/admin/v1/tenants"
    return [
        admin.route(keys, GET=admin.list_keys, POST=admin.create_key),
        admin.route(f"{keys}/{{key}}", GET=admin.get_key, DELETE=admin.revoke_key),
        admin.route(f"{keys}/{{key}}/rotate", POST=admin.rotate_key),
        admin.route(tenants, GET=admin.list_tenants, POST=admin.create_tenant),
        admin.route(
            f"{tenants}/{{tenant}}",
            GET=admin.get_tenant,
            PATCH=admin.change_tenant,
            DELETE=admin.delete_tenant,
        ),
        admin.route("/admin/v1/usage", GET=admin.usage),
    ]


class _Admin:
    def __init__(
        self,
        store: Store,
        directory: TenantDirectory,
        calls: StoreCalls,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._directory = directory
        self._calls = calls
        self._clock = clock

    def route(self, path: str, **handlers: _Handler) -> Route:
        """Return the route of a path whose methods all need an admin key."""

        async def endpoint(request: Request) -> Response:
            try:
                admin = await self._authenticate(request)
                handler = handlers["GET" if request.method == "HEAD" else request.method]
                response = await handler(request)
            except ApiError as error:
                return refusal(error)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            if request.method not in ("GET", "HEAD"):
                logger.info("admin key %s: %s %s", admin.key_id, request.method, request.url.path)
            return response

        return Route(path, endpoint, methods=list(handlers))

    # Keys

    async def list_keys(self, request: Request) -> Response:
        query = _query(request, "tenant", "after", "limit")
        limit = _limit(query)
        tenant, after = query.get("tenant"), query.get("after")
        call = partial(
            self._store.keys.list,
            tenant=None if tenant is None else _tenant_name(tenant),
            after=None if after is None else _key_id(after),
            limit=limit + 1,
        )
        now_s = self._clock()
        return _page([key_data(key, now_s) for key in await self._calls.run(call)], limit)

    async def create_key(self, request: Request) -> Response:
        spec = await _body(request, NewKey)
        issued = await self._change(partial(self._store.keys.create, spec))
        return self._issued(issued)

    async def get_key(self, request: Request) -> Response:
        key = await self._calls.run(partial(self._store.keys.get, _key_of(request)))
        return _json(key_data(key, self._clock()))

    async def revoke_key(self, request: Request) -> Response:
        key = await self._change(partial(self._store.keys.revoke, _key_of(request)))
        return _json({"id": key.id, "object": "api_key.deleted", "deleted": True})

    async def rotate_key(self, request: Request) -> Response:
        spec = await _body(request, Rotation)
        call = partial(self._store.keys.rotate, _key_of(request), grace_s=spec.grace_s)
        return self._issued(await self._change(call))

    # Tenants

    async def list_tenants(self, request: Request) -> Response:
        query = _query(request, "after", "limit")
        limit = _limit(query)
        after = _tenant_name(query["after"]) if "after" in query else ""
        call = partial(self._store.tenants.list, after=after, limit=limit + 1)
        return _page([tenant_data(tenant) for tenant in await self._calls.run(call)], limit)

    async def create_tenant(self, request: Request) -> Response:
        spec = await _body(request, NewTenant)
        tenant = await self._change(partial(self._store.tenants.create, spec))
        return _json(tenant_data(tenant), status=201)

    async def get_tenant(self, request: Request) -> Response:
        call = partial(self._store.tenants.get, _tenant_of(request))
        return _json(tenant_data(await self._calls.run(call)))

    async def change_tenant(self, request: Request) -> Response:
        settings = await _body(request, TenantSettings)
        call = partial(self._store.tenants.change, _tenant_of(request), settings)
        return _json(tenant_data(await self._change(call)))

    async def delete_tenant(self, request: Request) -> Response:
        force = _query(request, "force").get("force", "false")
        if force not in ("true", "false"):
            raise BadRequest("`force` is true or false", param="force")
        name = _tenant_of(request)
        await self._change(partial(self._store.tenants.delete, name, force=force == "true"))
        return _json({"id": name, "object": "tenant.deleted", "deleted": True})

    # Usage

    async def usage(self, request: Request) -> Response:
        query = _query(request, "tenant", "model", "since", "until", "group_by", "format")
        shape = query.get("format") or _accepted(request)
        if shape not in ("json", "csv"):
            raise BadRequest("`format` is json or csv", param="format")
        wanted = self._usage_query(query)
        rows = await self._calls.run(partial(self._store.usage.report, wanted))
        if len(rows) > _MAX_USAGE_ROWS:
            raise BadRequest(
                f"These are more than {_MAX_USAGE_ROWS} rows. Group by less, or ask for a shorter "
                "time with `since` and `until`.",
                param="group_by",
            )
        if shape == "json":
            return _json({"object": "list", "group_by": wanted.group_by, "data": rows})
        return Response(
            to_csv(rows, wanted.group_by),
            media_type="text/csv; charset=utf-8",
            headers={"cache-control": "no-store"},
        )

    def _usage_query(self, query: Mapping[str, str]) -> UsageQuery:
        moments = {
            f"{name}_s": parse_moment(query[name], self._clock(), param=name)
            for name in ("since", "until")
            if name in query
        }
        model = query.get("model")
        if model is not None and not _PRINTABLE.fullmatch(model):
            raise BadRequest("`model` is the name of a model", param="model")
        return UsageQuery(
            group_by=parse_groups(query.get("group_by", "tenant,model,adapter"), param="group_by"),
            tenant=_tenant_name(query["tenant"]) if "tenant" in query else None,
            model=model,
            limit=_MAX_USAGE_ROWS + 1,
            **moments,
        )

    # What they share

    async def _authenticate(self, request: Request) -> Tenant:
        tenant = await self._directory.authenticate(request.scope["headers"])
        if not tenant.is_admin:
            raise PermissionDenied("This needs an admin key.")
        await self._calls.run(partial(self._store.keys.touch, [tenant.key_id]))
        return tenant

    async def _change(self, call: Callable[[], T]) -> T:
        """Do what changes tenants or keys, and see it here at once."""
        done = await self._calls.run(call)
        with contextlib.suppress(StoreUnavailable):  # it is done; the next refresh sees it
            await self._directory.refresh()
        return done

    def _issued(self, issued: IssuedKey) -> Response:
        data = {**key_data(issued.record, self._clock()), "key": issued.key}
        return _json(data, status=201)


def _key_of(request: Request) -> str:
    return _key_id(request.path_params["key"])


def _key_id(text: str) -> str:
    if not _KEY_ID.fullmatch(text):
        raise NotFound(f"There is no key `{_shorten(text)}`.")
    return text


def _tenant_of(request: Request) -> str:
    return _tenant_name(request.path_params["tenant"])


def _tenant_name(text: str) -> str:
    if not _TENANT_NAME.fullmatch(text):
        raise NotFound(f"There is no tenant `{_shorten(text)}`.", param="tenant")
    return text


def _query(request: Request, *known: str) -> dict[str, str]:
    for name in request.query_params:
        if name not in known:
            raise BadRequest(
                f"There is no parameter `{_shorten(name)}` here; known are {', '.join(known)}.",
                param=_shorten(name),
            )
    return dict(request.query_params)


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(_PAGE))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= _MAX_PAGE:
        raise BadRequest(f"`limit` is a number from 1 to {_MAX_PAGE}", param="limit")
    return int(text)


def _accepted(request: Request) -> str:
    accept = request.headers.get("accept", "")
    return "csv" if accept.partition(";")[0].strip().lower() == "text/csv" else "json"


async def _body(request: Request, model: type[P]) -> P:
    """Return the body as `model`; an empty one is an empty object."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise PayloadTooLarge(f"The body is larger than {_MAX_BODY_BYTES} bytes.")
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = _shorten(".".join(str(step) for step in first["loc"])) or None
        message = _shorten(f"`{place}`: {first['msg']}" if place else first["msg"])
        raise BadRequest(message, param=place) from None


def _page(rows: list[dict[str, object]], limit: int) -> Response:
    """Answer a list that was read with one row too many."""
    return _json({"object": "list", "data": rows[:limit], "has_more": len(rows) > limit})


def _json(content: Any, *, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(content),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store"},  # it may hold a key
    )


def refusal(error: ApiError) -> Response:
    """Return the answer of an endpoint of ours to an error, in OpenAI's shape."""
    response = Response(error_body(error), status_code=error.status, media_type="application/json")
    response.raw_headers.extend(error.headers)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(whole_seconds(error.retry_after_s))
    return response


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
