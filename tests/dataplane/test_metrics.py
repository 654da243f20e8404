"""The gateway's figures: what is scraped adds up."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aibrix_ray.dataplane.metrics import GatewayMetrics, Histogram
from aibrix_ray.pipeline import ModelState
from aibrix_ray.types import Ending, Usage
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, event, hang
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.policies import First


def make_metrics(under_way: int = 0) -> GatewayMetrics:
    return GatewayMetrics({"m": ModelState("m", First(seed=0))}, lambda: under_way)


def samples(metrics: GatewayMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_histogram_counts_each_value_once_and_up_to_its_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.10001, 1.0, 5.0):
        histogram.observe(value)
    buckets, total = histogram.export()
    assert buckets == [("0.1", 2.0), ("1.0", 4.0), ("+Inf", 5.0)]
    assert total == pytest.approx(6.20001)


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


def test_tokens_add_up_by_kind() -> None:
    metrics = make_metrics()
    usage = Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=5)
    metrics.attempt_ended("m", 0.1, 0.2, usage)
    metrics.attempt_ended("m", 0.1, 0.2, usage)
    metrics.attempt_ended("m", 0.1, 0.2, None)
    found = samples(metrics)
    kinds = {key[1][0]: value for key, value in found.items() if "tokens_total" in key[0]}
    assert kinds == {"prompt": 14, "cached_prompt": 4, "generation": 10}


def test_an_attempt_without_a_first_byte_has_no_latency() -> None:
    metrics = make_metrics()
    metrics.attempt_ended("m", None, 9.0, None)
    metrics.attempt_ended("m", 0.3, 2.0, None)
    found = samples(metrics)
    ttft = "aibrix_ray_time_to_first_token_seconds"
    assert found[(f"{ttft}_count", ("m",))] == 1
    assert found[(f"{ttft}_sum", ("m",))] == pytest.approx(0.3)
    assert found[("aibrix_ray_e2e_request_latency_seconds_sum", ("m",))] == pytest.approx(2.0)


def test_every_family_is_there_before_the_first_request() -> None:
    names = {name for name, _ in samples(make_metrics(under_way=3))}
    assert {
        "aibrix_ray_ready_replicas",
        "aibrix_ray_held_requests",
        "aibrix_ray_in_flight_requests",
        "aibrix_ray_retries_total",
    } <= names
    assert samples(make_metrics(under_way=3))[("aibrix_ray_in_flight_requests", ())] == 3


@pytest.mark.parametrize("name", ['a "quoted" model', "back\\slash", "line\nbreak", "é/😀"])
def test_any_name_of_a_model_is_a_label(name: str) -> None:
    metrics = make_metrics()
    metrics.request_ended(name, Ending.COMPLETED, 200)
    assert samples(metrics)[("aibrix_ray_requests_total", ("completed", name, "200"))] == 1


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
    assert found[("aibrix_ray_time_to_first_token_seconds_count", model)] == 6
    assert found[("aibrix_ray_e2e_request_latency_seconds_count", model)] == 6
    generated = found[("aibrix_ray_tokens_total", (("kind", "generation"), *model))]
    assert generated == 3 * 2


async def test_a_scrape_says_what_it_is_and_who_answered(gateway: MakeGateway) -> None:
    answer = await (await gateway()).http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["gateway"] == "gateway"
    assert list(text_string_to_metric_families(answer.text))
