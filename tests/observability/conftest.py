"""A gateway under load, whose `/metrics` the generated queries are held against."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aibrix_ray.types import ReplicaStats, Usage
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, event
from tests.dataplane.conftest import backend, gateway, raw_backend, socket_dir
from tests.dataplane.gateways import MakeGateway

__all__ = ["backend", "gateway", "raw_backend", "socket_dir"]

#: Sample's name → the labels that its series have.
Exported = Mapping[str, set[str]]


@pytest.fixture
async def exported(backend: MakeBackend, gateway: MakeGateway) -> Exported:
    """Scrape a gateway that has served a success, a stream, an error and a refusal."""

    async def handler(call: Call) -> None:
        if b"fail" in call.body:
            return await call.answer(status=500)
        if b"stream" not in call.body:
            return await call.answer()
        await call.begin(SSE)
        await call.write(event("a") + b': aibrix {"usage":[3,1,2]}\n\n')
        await call.end(DONE)

    running = await gateway([await backend(handler)])
    running.app.fleet.apply_stats([ReplicaStats("m-0", "m", "m", "", 1, 0, 0)], now_s=0.0)
    for extra in ("plain", "stream", "fail"):
        await running.post({"model": "m", "x": extra})
    await running.post({"model": "unknown"})
    metrics = running.app.metrics
    metrics.watch("limiter", lambda: True)
    metrics.tenant_used("acme", Usage(3, 1, 2))
    metrics.limited("acme", "requests_per_minute")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await running.http.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
