"""One OpenTelemetry span a request, between the client's trace and the engine's.

A client's `traceparent` is the parent of the gateway's span; the replica is sent one that names the
gateway's span, so vLLM's own spans (engine argument `otlp_traces_endpoint`) hang below it. Spans
leave in the background; a collector that is away costs lost spans, never a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from aibrix_ray.asgi import Scope
from aibrix_ray.config.http import TracingConfig
from aibrix_ray.dataplane.facts import RequestFacts
from aibrix_ray.dataplane.wire import FORWARDED_PATHS
from aibrix_ray.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

_CONTEXT = (b"traceparent", b"tracestate")
#: Less than the margin that Serve grants beyond the drain.
_CLOSE_S = 3.0


class Tracing:
    """Makes the spans of one gateway.

    Args:
        config: the collector and the share of requests.
        processor: takes the spans instead of the collector, in tests.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, config: TracingConfig, *, processor: SpanProcessor | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import (
                TraceContextTextMapPropagator,
            )
        except ImportError as error:
            raise _not_installed(config) from error
        name = os.environ.get("OTEL_SERVICE_NAME", "aibrix-ray-gateway")
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
            resource=Resource.create({SERVICE_NAME: name}),
            shutdown_on_exit=False,  # `close` does that; a killed gateway loses its last spans
        )
        self._provider.add_span_processor(processor or _exporting(config))
        self._tracer = self._provider.get_tracer("aibrix_ray")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def begin(self, scope: Scope, facts: RequestFacts) -> Span:
        """Begin the span of a request and put it into the headers that the replica will get."""
        carrier = {
            key.decode("latin-1"): value.decode("latin-1")
            for key, value in scope["headers"]
            if key in _CONTEXT
        }
        span = self._tracer.start_span(
            # Names of spans are grouped by: what anybody can make up is no part of one.
            f"{facts.method} {facts.path}" if facts.path in FORWARDED_PATHS else facts.method,
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={
                "http.request.method": facts.method,
                "url.path": facts.path,
                "url.scheme": scope["scheme"],
                "client.address": facts.client,
            },
        )
        carrier = {}
        self._propagator.inject(carrier, context=self._trace.set_span_in_context(span))
        scope["headers"] = [
            *(pair for pair in scope["headers"] if pair[0] not in _CONTEXT),
            *((key.encode("latin-1"), value.encode("latin-1")) for key, value in carrier.items()),
        ]
        return span

    def end(self, span: Span, facts: RequestFacts) -> None:
        """End the span with what is known of its request."""
        if span.is_recording():
            span.set_attributes({key: value for key, value in _attributes(facts) if value})
            if facts.status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    async def close(self) -> None:
        """Send what is still to be sent, as far as the collector takes it in time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._provider.shutdown), _CLOSE_S)


def _attributes(facts: RequestFacts) -> list[tuple[str, Any]]:
    return [
        ("http.response.status_code", facts.status),
        ("gen_ai.request.model", facts.model),
        ("gen_ai.usage.input_tokens", facts.prompt_tokens),
        ("gen_ai.usage.output_tokens", facts.completion_tokens),
        ("gen_ai.latency.time_to_first_token", facts.ttft_s),
        ("aibrix.request_id", facts.request_id),
        ("aibrix.replica", facts.replica),
        ("aibrix.tenant", facts.tenant),
        ("aibrix.retries", facts.retries),
        ("aibrix.ending", facts.ending),
    ]


def _exporting(config: TracingConfig) -> SpanProcessor:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise _not_installed(config) from error
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint))


def _not_installed(config: TracingConfig) -> ConfigError:
    return ConfigError(
        path="gateway.args.http.tracing",
        value=config.otlp_endpoint,
        expected="null, because OpenTelemetry is not installed on this node",
        hint="install it: pip install 'aibrix-ray[tracing]'",
    )
