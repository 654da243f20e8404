"""What stands between clients and the gateway's application, as far as it is switched on.

In this order, from the client: trusted proxies, access log and trace, CORS. With everything off
there is nothing: the server calls the gateway's application itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

from aibrix_ray.asgi import WRITE, AsgiApp, Message, Receive, Scope, Send
from aibrix_ray.config.http import CorsConfig, HttpConfig
from aibrix_ray.dataplane import access_log
from aibrix_ray.dataplane.client_address import BehindProxies, TrustedProxies
from aibrix_ray.dataplane.facts import FACTS, RequestFacts
from aibrix_ray.dataplane.tracing import Tracing
from aibrix_ray.types import Ending

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

#: What pages of other origins may read of an answer besides what browsers always let them.
_EXPOSED = (
    "x-request-id",
    "request-id",
    "target-replica",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)


#: Characters of a path that are logged; ours are short, and others are none of ours.
_MAX_PATH = 256


class Rim:
    """Wraps the application of one gateway.

    Attributes:
        app: what the server is to serve; the given application itself where all is off.

    Args:
        app: the gateway's application.
        config: the gateway's `http`.
        clock: monotonic seconds.
        span_processor: takes spans instead of the collector, in tests.

    Raises:
        ConfigError: tracing is on and OpenTelemetry is not installed.
    """

    def __init__(
        self,
        app: AsgiApp,
        config: HttpConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        span_processor: SpanProcessor | None = None,
    ) -> None:
        self.app = app
        self._tracing: Tracing | None = None
        if config.cors is not None:
            self.app = _cors(self.app, config.cors)
        if config.tracing is not None:
            self._tracing = Tracing(config.tracing, processor=span_processor)
        if config.access_log:
            access_log.prepare()
        if config.access_log or self._tracing is not None:
            self.app = _Recorded(self.app, self._tracing, log=config.access_log, clock=clock)
        if config.trusted_proxies:
            self.app = BehindProxies(self.app, TrustedProxies(config.trusted_proxies))

    async def close(self) -> None:
        """Send the spans that are still to be sent."""
        if self._tracing is not None:
            await self._tracing.close()


class _Recorded:
    """Keeps a `RequestFacts` for each request; writes the access log and the span at its end."""

    def __init__(
        self, app: AsgiApp, tracing: Tracing | None, *, log: bool, clock: Callable[[], float]
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._log = log
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        facts = RequestFacts(
            started_s=self._clock(),
            client=client[0] if client else "",
            method=scope["method"],
            path=scope["path"][:_MAX_PATH],
        )
        scope[FACTS] = facts
        span = self._tracing.begin(scope, facts) if self._tracing is not None else None
        answer = _Counted(send, facts, self._clock)
        if (write := scope.get(WRITE)) is not None:
            scope[WRITE] = answer.counting(write)
        try:
            await self._app(scope, receive, answer)
        finally:
            self._finish(facts, scope, complete=answer.complete)
            if self._log:
                access_log.write(facts)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, facts)

    def _finish(self, facts: RequestFacts, scope: Scope, *, complete: bool) -> None:
        facts.duration_s = self._clock() - facts.started_s
        facts.request_id = facts.request_id or scope.get("aibrix.request_id", b"").decode()
        facts.model = facts.model or scope.get("aibrix.model", "")
        if not facts.ending:
            facts.ending = _ending(facts.status, complete=complete)
        if not facts.status and facts.ending == Ending.CANCELLED.value:
            facts.status = 499


class _Counted:
    """The application's `send`, with an eye on what goes by."""

    __slots__ = ("_clock", "_facts", "_send", "complete")

    def __init__(self, send: Send, facts: RequestFacts, clock: Callable[[], float]) -> None:
        self._send = send
        self._facts = facts
        self._clock = clock
        self.complete = False

    async def __call__(self, message: Message) -> None:
        facts = self._facts
        if message["type"] == "http.response.start":
            facts.status = message["status"]
        elif message["type"] == "http.response.body":
            self._count(message.get("body", b""))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True

    def counting(self, write: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        """Return the server's `write`, with an eye on what goes by."""

        def counted(body: bytes) -> bool:
            taken = write(body)
            if taken:
                self._count(body)
            return taken

        return counted

    def _count(self, body: bytes) -> None:
        facts = self._facts
        if body and not facts.bytes_out and facts.ttft_s is None:
            facts.ttft_s = self._clock() - facts.started_s
        facts.bytes_out += len(body)


def _ending(status: int, *, complete: bool) -> str:
    """Return how a request ended that the data plane said nothing about."""
    if not complete:
        return Ending.CANCELLED.value
    if status >= 500:
        return Ending.FAILED.value
    ending = Ending.CLIENT_ERROR if status >= 400 else Ending.COMPLETED
    return ending.value


def _cors(app: AsgiApp, config: CorsConfig) -> AsgiApp:
    return CORSMiddleware(
        app,
        allow_origins=config.allow_origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        allow_credentials=config.allow_credentials,
        expose_headers=_EXPOSED,
        max_age=config.max_age_s,
    )
