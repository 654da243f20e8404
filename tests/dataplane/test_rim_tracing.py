"""W3C trace context through the gateway: as it came, and with a span of the gateway between."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from aibrix_ray.asgi import AsgiApp, Receive, Scope, Send
from aibrix_ray.config.http import HttpConfig, TracingConfig
from aibrix_ray.dataplane import Address
from aibrix_ray.dataplane.rim import Rim
from aibrix_ray.errors import ConfigError
from tests.dataplane.backends import Backend, MakeBackend
from tests.dataplane.clients import CHAT, Answer
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.waiting import eventually
from tests.engines.test_simulated_serving import serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"traceparent: 00-{TRACE}-{PARENT}-01"


class Traced:
    """A gateway whose spans stay in memory."""

    def __init__(self, gateway: Gateway, *, sample_ratio: float = 1.0) -> None:
        self.gateway = gateway
        self._exporter = InMemorySpanExporter()
        config = HttpConfig(
            tracing=TracingConfig(otlp_endpoint="http://none", sample_ratio=sample_ratio)
        )
        gateway.rim = Rim(gateway._app, config, span_processor=SimpleSpanProcessor(self._exporter))
        gateway.server._config.loaded_app = gateway.rim.app

    async def ask(self, *lines: str, path: str = CHAT, model: str = "m") -> Answer:
        client = await self.gateway.connect()
        client.post({"model": model}, path, *lines)
        return await client.answer()

    async def span(self) -> ReadableSpan:
        """Return the one span that was made."""
        await eventually(lambda: len(self._exporter.get_finished_spans()) == 1, "one span")
        return self._exporter.get_finished_spans()[0]

    @property
    def spans(self) -> int:
        return len(self._exporter.get_finished_spans())


def passed(replica: Backend, name: bytes = b"traceparent") -> list[str]:
    """The values of a header that reached the replica."""
    return [value.decode() for key, value in replica.calls[-1].headers if key == name]


def sampled(traceparent: str) -> bool:
    return bool(int(traceparent.rpartition("-")[2], 16) & 1)  # another bit: the id is random


async def test_without_tracing_the_context_passes_as_it_came(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    client.post({"model": "m"}, CHAT, TRACEPARENT, "tracestate: vendor=1")
    assert (await client.answer()).status == 200
    assert passed(replica) == [TRACEPARENT.partition(": ")[2]]
    assert passed(replica, b"tracestate") == ["vendor=1"]


async def test_the_gateways_span_stands_between_the_clients_and_the_replicas(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    traced = Traced(await gateway([replica]))
    await traced.ask(TRACEPARENT, "tracestate: vendor=1", "x-request-id: mine")
    span = await traced.span()
    assert (f"{span.context.trace_id:032x}", span.kind) == (TRACE, SpanKind.SERVER)
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert passed(replica) == [f"00-{TRACE}-{span.context.span_id:016x}-01"]
    assert passed(replica, b"tracestate") == ["vendor=1"]
    attributes = dict(span.attributes or {})
    assert span.name == f"POST {CHAT}"
    assert attributes["http.request.method"] == "POST"
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.request.model"] == "m"
    assert attributes["aibrix.request_id"] == "mine"
    assert attributes["aibrix.ending"] == "completed"
    assert span.status.status_code is StatusCode.UNSET


async def test_a_request_without_a_trace_begins_one(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    traced = Traced(await gateway([replica]))
    await traced.ask("traceparent: nonsense")
    span = await traced.span()
    assert span.parent is None
    (context,) = passed(replica)
    assert context.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert sampled(context)


async def test_what_is_not_sampled_is_passed_on_as_that(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    traced = Traced(await gateway([replica]), sample_ratio=0.0)
    await traced.ask()
    assert not sampled(passed(replica)[0])
    await traced.ask(TRACEPARENT.removesuffix("1") + "0")
    assert passed(replica)[0].startswith(f"00-{TRACE}-")
    assert not sampled(passed(replica)[0])
    assert traced.spans == 0
    await traced.ask(TRACEPARENT)  # its client has decided already
    await traced.span()


async def test_a_failure_is_marked_and_a_refusal_is_not(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    traced = Traced(await gateway(wait_for_replica_s=0.0))
    assert (await traced.ask()).status == 503
    assert (await traced.span()).status.status_code is StatusCode.ERROR
    traced = Traced(await gateway())
    assert (await traced.ask(model="none")).status == 404
    assert (await traced.span()).status.status_code is StatusCode.UNSET


async def test_what_anybody_can_make_up_names_no_span(gateway: MakeGateway) -> None:
    traced = Traced(await gateway())
    await traced.ask(path="/made/up")
    assert (await traced.span()).name == "POST"


async def test_a_collector_that_is_away_costs_no_request(
    backend: MakeBackend, gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    running = await gateway(
        [await backend()],
        args={"http": {"tracing": {"otlp_endpoint": "http://127.0.0.1:9/v1/traces"}}},
    )
    running.tolerate("opentelemetry")
    client = await running.connect()
    client.post({"model": "m"})
    assert (await client.answer()).status == 200
    await running.rim.close()


async def test_without_opentelemetry_the_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(*_: object) -> None:
        """Stand for an application."""

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match="aibrix-ray\\[tracing\\]") as refused:
        Rim(app, HttpConfig(tracing=TracingConfig(otlp_endpoint="http://collector")))
    assert refused.value.path == "gateway.args.http.tracing"


async def test_an_engine_gets_the_context_of_the_gateways_span(gateway: MakeGateway) -> None:
    seen: list[bytes] = []

    def recording(app: AsgiApp) -> AsgiApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            seen.extend(value for key, value in scope["headers"] if key == b"traceparent")
            await app(scope, receive, send)

        return wrapped

    async with serving(wrap=recording) as engine:
        address = Address(host="127.0.0.1", port=engine.port)
        traced = Traced(await gateway({"tiny": [address]}))
        client = await traced.gateway.connect()
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        client.post(body, CHAT, TRACEPARENT)
        assert (await client.answer()).status == 200
        span = await traced.span()
        assert seen == [f"00-{TRACE}-{span.context.span_id:016x}-01".encode()]
