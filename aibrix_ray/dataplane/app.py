"""The gateway as an ASGI application: reads, resolves, forwards, answers errors.

Knows no Serve and no Ray: whoever owns it feeds the fleet. A gateway keeps nothing that must
survive it; when it dies its own connections break (official clients retry them) and its siblings
on the same port go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aibrix_ray.asgi import Receive, Scope, Send
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import wire
from aibrix_ray.dataplane.access import TRUSTED, Access, MakeLimiter, Visit, local_limiter
from aibrix_ray.dataplane.body import ClientGone, Form, read_form, read_json
from aibrix_ray.dataplane.facts import FACTS, RequestFacts
from aibrix_ray.dataplane.fleet import Fleet
from aibrix_ray.dataplane.forward import BrokenAnswer, Forwarder, error_body
from aibrix_ray.dataplane.metrics import GatewayMetrics
from aibrix_ray.dataplane.owned import owned_app
from aibrix_ray.dataplane.settings import model_settings
from aibrix_ray.errors import ApiError, MethodNotAllowed, whole_seconds
from aibrix_ray.pipeline import ModelSettings, ModelState, Pipeline
from aibrix_ray.routing import RoutingPolicy, make_policy
from aibrix_ray.types import Ending, RequestView

if TYPE_CHECKING:
    from aibrix_ray.asgi import AsgiApp

logger = logging.getLogger(__name__)


class GatewayApp:
    """One gateway. Call `start` on the loop it will serve on, `close` at the end."""

    def __init__(
        self,
        args: GatewayArgs,
        user_config: GatewayUserConfig,
        *,
        name: str = "gateway",
        seed: int = 0,
        make_limiter: MakeLimiter = local_limiter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._args = args
        self._config = user_config
        self._seed = seed
        self._clock = clock
        self.pipeline = Pipeline()
        self.fleet = Fleet(
            self.pipeline, make_policy=self._policy_of, settings_of=self._settings_of
        )
        self.metrics = GatewayMetrics(
            self.pipeline.models,
            lambda: len(self.forwarder.under_way),
            waiting=lambda model: (len(model.queue) - model.held, model.queue.capacity),
            ejected=lambda model: model.left_out,
            clock=clock,
        )
        self.forwarder = Forwarder(self.fleet, self.metrics, clock=clock)
        self.access = Access(args, self.metrics, make_limiter=make_limiter)
        self.ready = False
        self.draining = False
        self._owned: AsgiApp = owned_app(self)
        self._tasks: list[asyncio.Task[None]] = []
        self.reconfigure(user_config)

    async def start(self) -> None:
        """Begin what runs beside requests; freeze what was loaded: the collector skips it."""
        for name, work in {
            "deadlines": self.forwarder.sweep(),
            "gauges": self.metrics.publish_regularly(),
        }.items():
            self._tasks.append(asyncio.create_task(work, name=f"aibrix-{name}"))
        await self.access.start()
        gc.collect()
        gc.freeze()

    async def close(self) -> None:
        """End the background work and close the channels to the replicas."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.access.close()
        self.metrics.leave()
        self.fleet.close()

    def reconfigure(self, user_config: GatewayUserConfig) -> None:
        """Take new run-time settings in place.

        Raises:
            ConfigError: a policy or its options are unknown; the old settings stay.
        """
        for name, model in {"": None, **user_config.models}.items():
            routing = (model and model.routing) or user_config.routing
            path = f"user_config.models.{name}.routing" if name else "user_config.routing"
            make_policy(routing.policy, seed=0, options=dict(routing.options), path=path)
        self._config = user_config
        self.pipeline.set_aliases(
            {alias: name for name, model in user_config.models.items() for alias in model.aliases}
        )
        self.access.apply(user_config)
        self.fleet.reconfigure()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever fails inside is answered here, in OpenAI's shape."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path not in wire.FORWARDED_PATHS:
            await self._owned(scope, receive, send)
            return
        scope["aibrix.request_id"], user = wire.identity(scope["headers"])
        scope["aibrix.model"] = ""
        forward = self._forward_json if path in wire.JSON_PATHS else self._forward_form
        ending, status, visit = Ending.COMPLETED, 200, Visit(user)
        try:
            if self.access.on and TRUSTED not in scope:
                visit.tenant = await self.access.tenant_of(scope["headers"])
            status = await forward(scope, receive, send, visit)
            if status >= 400:
                ending = Ending.FAILED if status >= 500 else Ending.CLIENT_ERROR
        except ApiError as error:
            status = error.status
            ending = Ending.FAILED if status >= 500 else Ending.REJECTED
            await send_error(send, error, scope["aibrix.request_id"])
        except ClientGone:
            ending, status = Ending.CANCELLED, 499
        except BrokenAnswer as error:
            ending, status = Ending.FAILED, error.error.status
            logger.warning("request %s broke: %s", scope["aibrix.request_id"].decode(), error)
        except Exception:
            ending, status = Ending.FAILED, 500
            logger.exception("request %s failed", scope["aibrix.request_id"].decode())
            await _send_bland_500(send, scope["aibrix.request_id"])
        finally:
            self.metrics.request_ended(scope["aibrix.model"], ending, status)
            if visit.life is not None and (visit.admitted is not None or visit.tenant is not None):
                self.access.leave(visit, visit.life, ending)
            if (facts := scope.get(FACTS)) is not None:
                _tell(facts, visit, ending, status)

    async def _forward_json(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> int:
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['path']} takes POST")
        body = await read_json(receive, max_bytes=self._args.max_body_bytes)
        fields = wire.peek(body)
        model = self.pipeline.resolve(fields.model)
        if fields.model != model.name:
            body = wire.with_model(body, model.name)
        max_tokens = fields.max_completion_tokens or fields.max_tokens
        request = RequestView(
            request_id=scope["aibrix.request_id"].decode(),
            model=model.name,
            path=scope["path"],
            stream=fields.stream is True,
            prompt=bytes(fields.messages or fields.prompt or fields.input),
            max_tokens=max_tokens if type(max_tokens) is int else None,
            user=fields.user if type(fields.user) is str else None,
        )
        if visit.user is not None and visit.tenant is None:
            request.user = visit.user
        if type(fields.n) is int and fields.n > 0:
            visit.choices = fields.n
        return await self._forward(model, request, scope, receive, send, visit, body)

    async def _forward_form(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> int:
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['path']} takes POST")
        form = await read_form(receive, scope["headers"], max_bytes=self._args.max_body_bytes)
        with contextlib.closing(form):
            model = self.pipeline.resolve(form.model)
            if form.model is not None and form.model != model.name:
                form.set_model(model.name)
            request = RequestView(
                request_id=scope["aibrix.request_id"].decode(),
                model=model.name,
                path=scope["path"],
            )
            return await self._forward(model, request, scope, receive, send, visit, form)

    async def _forward(
        self,
        model: ModelState,
        request: RequestView,
        scope: Scope,
        receive: Receive,
        send: Send,
        visit: Visit,
        body: bytes | Form,
    ) -> int:
        scope["aibrix.model"] = model.name
        if self.access.on:
            await self.access.admit(visit, request)
        now_s = request.arrived_s = self._clock()
        life = visit.life = self.pipeline.begin(model, request, now_s)
        if visit.admitted is not None:
            life.answer_headers = visit.admitted.headers
        return await self.forwarder.forward(life, scope, receive, send, body)

    def _policy_of(self, model: str) -> RoutingPolicy:
        config = self._config.models.get(model)
        routing = (config and config.routing) or self._config.routing
        return make_policy(routing.policy, seed=self._seed, options=dict(routing.options))

    def _settings_of(self, model: str) -> ModelSettings:
        return model_settings(self._config.models.get(model))


def _tell(facts: RequestFacts, visit: Visit, ending: Ending, status: int) -> None:
    """Fill in what the access log and the trace are told of a request."""
    facts.ending = ending.value
    facts.status = facts.status or status
    if visit.tenant is not None:
        facts.tenant = visit.tenant.name
    life = visit.life
    if life is not None:
        facts.replica = life.replica_id
        facts.retries = max(0, life.sent - 1)
        if life.usage is not None:
            facts.prompt_tokens = life.usage.prompt_tokens
            facts.completion_tokens = life.usage.completion_tokens


async def send_error(send: Send, error: ApiError, request_id: bytes) -> None:
    """Answer an error in OpenAI's shape."""
    body = error_body(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id),
        (b"request-id", request_id),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % whole_seconds(error.retry_after_s)))
    headers.extend(error.headers)
    if error.status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_bland_500(send: Send, request_id: bytes) -> None:
    # The answer may have begun; then the server closes the connection, which is all that is left.
    with contextlib.suppress(RuntimeError):
        await send_error(send, ApiError("internal error; see the gateway's log"), request_id)
