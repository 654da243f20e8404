"""The gateway's figures: what is scraped adds up."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aibrix_ray.dataplane import metrics as module
from aibrix_ray.dataplane.cells import Cells, Key
from aibrix_ray.dataplane.metrics import GatewayMetrics, Histogram
from aibrix_ray.observability import METRICS
from aibrix_ray.pipeline import ModelState
from aibrix_ray.types import Ending, ReplicaStats, ReplicaView, Usage
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, event, hang
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.policies import First
from tests.dataplane.waiting import Clock, eventually

USAGE = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=5)


def make_metrics(under_way: int = 0) -> GatewayMetrics:
    return GatewayMetrics({"m": ModelState("m", First(seed=0))}, lambda: under_way)


def samples(metrics: GatewayMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return values by name and the labels' values, in the order of the labels' names."""
    text = metrics.render().decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def view(name: str, stats_at_s: float | None) -> ReplicaView:
    """Return a replica whose last report was at `stats_at_s`, or that never reported."""
    replica = ReplicaView(name, "g", "m")
    if stats_at_s is not None:
        replica.stats = ReplicaStats(name, "g", "m", "e", 1, running=0, waiting=0)
        replica.stats_at_s = stats_at_s
    return replica


# Counting


def test_a_histogram_counts_each_value_once_at_its_bound() -> None:
    cells = Cells().get(Key("h"), 4)
    histogram = Histogram((0.1, 1.0), cells)
    for value in (0.0, 0.1, 0.10001, 1.0, 5.0):
        histogram.observe(value)
    assert cells.tolist() == [2.0, 2.0, 1.0, pytest.approx(6.20001)]


def test_the_buckets_that_are_shown_are_cumulative() -> None:
    metrics = make_metrics()
    for value in (0.005, 0.007, 0.3, 100.0):
        metrics.attempt_ended("m", value, value, None, streamed=True)
    found = samples(metrics)
    bucket = "aibrix_ray_time_to_first_token_seconds_bucket"
    shown = {bound: found[(bucket, (bound, "m"))] for bound in ("0.005", "0.01", "60.0", "+Inf")}
    assert shown == {"0.005": 1, "0.01": 2, "60.0": 3, "+Inf": 4}


def test_requests_are_counted_by_model_ending_and_status() -> None:
    metrics = make_metrics()
    for _ in range(2):
        metrics.request_ended("m", Ending.COMPLETED, 200)
    metrics.request_ended("m", Ending.FAILED, 502)
    metrics.request_ended("", Ending.REJECTED, 404)
    found = samples(metrics)
    assert found[("aibrix_ray_requests_total", ("completed", "m", "200"))] == 2
    assert found[("aibrix_ray_requests_total", ("failed", "m", "502"))] == 1
    assert found[("aibrix_ray_requests_total", ("rejected", "", "404"))] == 1
    assert metrics.of("m").endings == {(Ending.COMPLETED, 200): 2, (Ending.FAILED, 502): 1}


def test_tokens_add_up_by_kind() -> None:
    metrics = make_metrics()
    metrics.attempt_ended("m", 0.1, 0.2, USAGE)
    metrics.attempt_ended("m", 0.1, 0.2, USAGE)
    metrics.attempt_ended("m", 0.1, 0.2, None)
    found = samples(metrics)
    kinds = {
        key[1][0]: value for key, value in found.items() if key[0] == "aibrix_ray_tokens_total"
    }
    assert kinds == {"prompt": 14, "cached_prompt": 4, "generation": 10}


def test_an_attempt_without_a_first_byte_has_no_latency() -> None:
    metrics = make_metrics()
    metrics.attempt_ended("m", None, 9.0, None, streamed=True)
    metrics.attempt_ended("m", 0.3, 2.0, None, streamed=True)
    found = samples(metrics)
    ttft = "aibrix_ray_time_to_first_token_seconds"
    assert found[(f"{ttft}_count", ("m",))] == 1
    assert found[(f"{ttft}_sum", ("m",))] == pytest.approx(0.3)
    assert found[("aibrix_ray_e2e_request_latency_seconds_sum", ("m",))] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("completion", "streamed", "expected"),
    [(5, True, [0.4]), (1, True, []), (0, True, []), (5, False, [])],
    ids=["a stream", "one token", "no token", "a plain answer"],
)
def test_time_per_output_token_is_known_of_streams_of_two_tokens(
    completion: int, streamed: bool, expected: list[float]
) -> None:
    metrics = make_metrics()
    usage = Usage(prompt_tokens=1, completion_tokens=completion)
    metrics.attempt_ended("m", 0.4, 2.0, usage, streamed=streamed)
    found = samples(metrics)
    name = "aibrix_ray_time_per_output_token_seconds"
    assert found[(f"{name}_count", ("m",))] == len(expected)
    assert found[(f"{name}_sum", ("m",))] == pytest.approx(sum(expected))


def test_of_a_plain_answer_the_first_bytes_are_no_first_token() -> None:
    metrics = make_metrics()
    metrics.attempt_ended("m", 2.0, 2.0, None)
    found = samples(metrics)
    assert found[("aibrix_ray_time_to_first_token_seconds_count", ("m",))] == 0
    assert found[("aibrix_ray_e2e_request_latency_seconds_count", ("m",))] == 1


def test_each_event_of_a_model_has_its_counter() -> None:
    metrics = make_metrics()
    for index, count in enumerate(
        (
            metrics.retried,
            metrics.hedged,
            metrics.resumed,
            metrics.broken,
            metrics.queue_refused,
            metrics.queue_expired,
        )
    ):
        for _ in range(index + 1):
            count("m")
    metrics.waited("m", 0.25)
    found = samples(metrics)
    names = ["retries", "hedges", "streams_resumed", "streams_broken"]
    names += ["queue_refused", "queue_expired"]
    assert [found[(f"aibrix_ray_{name}_total", ("m",))] for name in names] == [1, 2, 3, 4, 5, 6]
    assert found[("aibrix_ray_queue_wait_seconds_sum", ("m",))] == 0.25


def test_tenants_are_counted_with_their_tokens_and_refusals() -> None:
    metrics = make_metrics()
    metrics.tenant_used("acme", USAGE)
    metrics.tenant_used("acme", None)
    metrics.limited("acme", "requests_per_minute")
    found = samples(metrics)
    assert found[("aibrix_ray_tenant_requests_total", ("acme",))] == 2
    assert found[("aibrix_ray_tenant_tokens_total", ("generation", "acme"))] == 5
    assert found[("aibrix_ray_limited_requests_total", ("requests_per_minute", "acme"))] == 1


# Bounds


def test_tenants_and_kinds_beyond_the_bound_are_counted_together() -> None:
    metrics = make_metrics()
    for number in range(module.MAX_TENANTS + 50):
        metrics.tenant_used(f"t{number}", None)
        metrics.limited("t0", f"kind{number}")
    found = samples(metrics)
    tenants = {
        key[1]: n for key, n in found.items() if key[0] == "aibrix_ray_tenant_requests_total"
    }
    assert len(tenants) == module.MAX_TENANTS + 1
    assert tenants[("other",)] == 50
    assert sum(tenants.values()) == module.MAX_TENANTS + 50
    kinds = [key for key in found if key[0] == "aibrix_ray_limited_requests_total"]
    assert len(kinds) == module.MAX_LIMITS + 1


def test_models_beyond_the_bound_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MODELS", 3)
    metrics = GatewayMetrics({}, lambda: 0)
    for number in range(6):
        metrics.request_ended(f"m{number}", Ending.COMPLETED, 200)
    found = samples(metrics)
    assert found[("aibrix_ray_requests_total", ("completed", "other", "200"))] == 3


@pytest.mark.parametrize(
    "name", ['a "quoted" model', "back\\slash", "line\nbreak", "é/😀", "x" * 10_000]
)
def test_any_name_of_a_model_is_a_label(name: str) -> None:
    metrics = make_metrics()
    metrics.request_ended(name, Ending.COMPLETED, 200)
    shown = name if len(name) < 200 else "x" * 199 + "…"
    assert samples(metrics)[("aibrix_ray_requests_total", ("completed", shown, "200"))] == 1


# Gauges


def test_a_models_series_are_there_before_its_first_request() -> None:
    found = samples(make_metrics(under_way=3))
    assert found[("aibrix_ray_in_flight_requests", ())] == 3
    assert found[("aibrix_ray_requests_total", ("completed", "m", "200"))] == 0
    assert found[("aibrix_ray_gateways", ())] == 1
    without = {"tenant_requests", "tenant_tokens", "limited_requests", "dependency_up"}
    shown = {name for name, _ in found}
    expected = {
        sample
        for each in METRICS
        for sample in each.samples
        if each.name.removeprefix("aibrix_ray_").removesuffix("_total") not in without
    }
    assert expected - shown == {"aibrix_ray_telemetry_age_seconds"}
    assert not {name for name in shown if name.endswith("_created")}


def test_a_request_without_a_model_has_an_end_and_nothing_else() -> None:
    metrics = make_metrics()
    metrics.request_ended("", Ending.REJECTED, 404)
    assert [name for name, labels in samples(metrics) if "" in labels] == [
        "aibrix_ray_requests_total"
    ]


def test_the_gauges_of_a_model_that_has_gone_disappear_and_its_counters_stay() -> None:
    models = {"m": ModelState("m", First(seed=0))}
    metrics = GatewayMetrics(models, lambda: 0)
    metrics.request_ended("m", Ending.COMPLETED, 200)
    assert ("aibrix_ray_ready_replicas", ("m",)) in samples(metrics)
    gone = models.pop("m")
    assert ("aibrix_ray_ready_replicas", ("m",)) not in samples(metrics)
    assert samples(metrics)[("aibrix_ray_requests_total", ("completed", "m", "200"))] == 1
    models["m"] = gone
    assert ("aibrix_ray_ready_replicas", ("m",)) in samples(metrics)


@pytest.mark.parametrize(
    ("reports_s", "age_s", "stale"),
    [
        ((), None, 0),
        ((None, None), None, 0),
        ((99.75,), 0.25, 0),
        ((99.75, 40.0, None), 0.25, 1),
        ((40.0, 10.0), 60.0, 2),
    ],
    ids=["no replica", "never", "fresh", "some", "all"],
)
def test_staleness_of_the_reports_is_shown(
    reports_s: tuple[float | None, ...], age_s: float | None, stale: int
) -> None:
    model = ModelState("m", First(seed=0))
    replicas = [view(f"r{i}", at_s) for i, at_s in enumerate(reports_s)]
    model.set_members(replicas, replicas)
    found = samples(GatewayMetrics({"m": model}, lambda: 0, clock=Clock(100.0)))
    assert found.get(("aibrix_ray_telemetry_age_seconds", ("m",))) == age_s
    assert found[("aibrix_ray_stale_replicas", ("m",))] == stale


def test_queue_and_ejected_replicas_are_asked_for() -> None:
    model = ModelState("m", First(seed=0))
    metrics = GatewayMetrics(
        {"m": model}, lambda: 0, waiting=lambda each: (7, 1000), ejected=lambda each: 2
    )
    found = samples(metrics)
    assert found[("aibrix_ray_queue_waiting_requests", ("m",))] == 7
    assert found[("aibrix_ray_queue_capacity_requests", ("m",))] == 1000
    assert found[("aibrix_ray_ejected_replicas", ("m",))] == 2


def test_whether_a_dependency_is_reachable_is_shown() -> None:
    metrics = make_metrics()
    up = True
    metrics.watch("limiter", lambda: up)
    assert samples(metrics)[("aibrix_ray_dependency_up", ("limiter",))] == 1
    up = False
    assert samples(metrics)[("aibrix_ray_dependency_up", ("limiter",))] == 0


def test_the_process_itself_is_shown() -> None:
    found = samples(make_metrics())
    assert found[("aibrix_ray_process_resident_memory_bytes", ())] > 1_000_000
    assert found[("aibrix_ray_process_cpu_seconds_total", ())] > 0
    assert found[("aibrix_ray_process_open_fds", ())] > 0


async def test_a_gauge_that_cannot_be_had_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    def broken() -> bool:
        nonlocal asked
        asked += 1
        raise RuntimeError("asked too much")

    metrics = make_metrics()
    metrics.watch("store", broken)
    task = asyncio.create_task(metrics.publish_regularly(period_s=0.0))
    await eventually(lambda: asked > 2, "it is asked again")
    task.cancel()
    assert "cannot publish the gauges" in caplog.text


# Over HTTP


async def test_what_a_gateway_counted_adds_up_to_what_it_was_asked(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        if b"fail" in call.body:
            return await call.answer(status=500)
        if b"bad" in call.body:
            return await call.answer(status=422)
        if b"hang" in call.body:
            return await hang(call)
        await call.begin(SSE)
        await call.write(event("a") + b': aibrix {"usage":[3,1,2]}\n\n')
        await call.end(DONE)

    replica = await backend(handler)
    running = await gateway([replica])
    for text in ("ok", "ok", "ok", "fail", "bad", "bad"):
        await running.post({"model": "m", "x": text})
    await running.post({"model": "unknown"})
    await running.http.get("/v1/models")  # asks no model: not counted
    client = await running.connect()
    client.post({"model": "m", "x": "hang"})
    await replica.call(6)
    assert (await running.samples())[("aibrix_ray_in_flight_requests", ())] == 1
    client.leave()
    await running.until_idle()

    found = await running.samples()
    requests = {
        (dict(labels)["model"], dict(labels)["ending"], dict(labels)["status"]): value
        for (name, labels), value in found.items()
        if name == "aibrix_ray_requests_total"
    }
    assert requests == {
        ("m", "completed", "200"): 3,
        ("m", "failed", "500"): 1,
        ("m", "client_error", "422"): 2,
        ("m", "cancelled", "499"): 1,
        ("", "rejected", "404"): 1,
    }
    assert sum(requests.values()) == running.begun
    assert found[("aibrix_ray_in_flight_requests", ())] == 0
    model = (("model", "m"),)
    assert found[("aibrix_ray_ready_replicas", model)] == 1
    assert found[("aibrix_ray_e2e_request_latency_seconds_count", model)] == 6
    generated = found[("aibrix_ray_tokens_total", (("kind", "generation"), *model))]
    assert generated == 3 * 2


@pytest.mark.parametrize("query", ["", "?scope=node", "?scope=process"])
async def test_a_scrape_says_what_it_is_and_who_answered(gateway: MakeGateway, query: str) -> None:
    answer = await (await gateway()).http.get(f"/metrics{query}")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["gateway"] == "gateway"
    assert list(text_string_to_metric_families(answer.text))


async def test_an_unknown_scope_is_refused(gateway: MakeGateway) -> None:
    answer = await (await gateway()).http.get("/metrics?scope=cluster")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "scope")
