"""The endpoints that the gateway answers itself: models, health, metrics. Starlette; not hot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from aibrix_ray.dataplane.admin import admin_routes, refusal
from aibrix_ray.dataplane.openapi import OWNED, document
from aibrix_ray.dataplane.openapi_admin import ADMIN
from aibrix_ray.errors import (
    ApiError,
    BadRequest,
    MethodNotAllowed,
    ModelNotAllowed,
    ModelNotFound,
    NotFound,
)
from aibrix_ray.pipeline import ModelState

if TYPE_CHECKING:
    from aibrix_ray.asgi import AsgiApp
    from aibrix_ray.dataplane.app import GatewayApp


def owned_app(gateway: GatewayApp) -> AsgiApp:
    """Return the ASGI application of everything that is not forwarded."""
    endpoints = _Endpoints(gateway)
    tenancy = gateway.access.tenancy
    admin = []
    if tenancy is not None:
        admin = admin_routes(tenancy.store, tenancy.directory, tenancy.calls)
    app = Starlette(
        routes=[
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{model:path}", endpoints.model),
            Route("/healthz", endpoints.healthz),
            Route("/readyz", endpoints.readyz),
            Route("/metrics", endpoints.metrics),
            Route("/-/healthz", endpoints.serve_healthz),
            Route("/-/routes", endpoints.serve_routes),
            Route("/openapi.json", endpoints.openapi),
            *admin,
        ],
        exception_handlers={404: _not_found, 405: _not_allowed, ApiError: _api_error},
    )
    return app


class _Endpoints:
    def __init__(self, gateway: GatewayApp) -> None:
        self._gateway = gateway

    async def models(self, request: Request) -> Response:
        pipeline = self._gateway.pipeline
        tenant = await self._gateway.access.tenant_of(request.headers.raw)
        models = {
            name: model
            for name, model in pipeline.models.items()
            if tenant is None or tenant.may_use(name)
        }
        data = [self._card(model, name) for name, model in models.items()]
        data += [
            self._card(models[name], alias)
            for alias, name in pipeline.aliases.items()
            if name in models
        ]
        return _json({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if not name:
            raise ModelNotFound(name, self._gateway.pipeline.names())
        tenant = await self._gateway.access.tenant_of(request.headers.raw)
        model = self._gateway.pipeline.resolve(name)
        if tenant is not None and not tenant.may_use(model.name):
            raise ModelNotAllowed(name)
        return _json(self._card(model, name))

    async def healthz(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        gateway = self._gateway
        ready = gateway.ready and not gateway.draining
        models = {name: len(model.ready) for name, model in gateway.pipeline.models.items()}
        status = "ready" if ready else "draining" if gateway.draining else "starting"
        return _json({"status": status, "ready_replicas": models}, status=200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        scope = request.query_params.get("scope", "node")
        if scope not in ("node", "process"):
            raise BadRequest("`scope` is `node` (the default) or `process`", param="scope")
        return Response(
            self._gateway.metrics.render(scope="process" if scope == "process" else "node"),
            media_type="text/plain; version=0.0.4; charset=utf-8",
            # Gateways share the port: with scope=process a reader must know which one answered.
            headers={"gateway": self._gateway.name},
        )

    async def serve_healthz(self, request: Request) -> Response:
        """Answer KubeRay's readiness probe, which greps for `success`."""
        if self._gateway.draining or not self._gateway.ready:
            return PlainTextResponse("not ready", status_code=503)
        return PlainTextResponse("success")

    async def serve_routes(self, request: Request) -> Response:
        return _json({"/": "gateway"})

    async def openapi(self, request: Request) -> Response:
        tenancy = self._gateway.access.tenancy
        return _json(document(OWNED if tenancy is None else [*OWNED, *ADMIN]))

    def _card(self, model: ModelState, name: str) -> dict[str, Any]:
        groups = [g for g in self._gateway.fleet.groups.values() if g.model == model.name]
        created_s = min((group.created_s for group in groups), default=0.0)
        return {
            "id": name,
            "object": "model",
            "created": int(created_s),
            "owned_by": "aibrix_ray",
            "root": model.name,
        }


def _json(content: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


async def _not_found(request: Request, exc: Exception) -> Response:
    return refusal(NotFound(f"There is no {request.url.path[:200]} here"))


async def _not_allowed(request: Request, exc: Exception) -> Response:
    allow = (getattr(exc, "headers", None) or {}).get("Allow", "GET")
    message = f"{request.url.path} does not take {request.method}"
    return refusal(MethodNotAllowed(message, allow=allow))


async def _api_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ApiError)
    return refusal(exc)
