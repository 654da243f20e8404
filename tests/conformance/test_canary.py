"""CompatCanary's seven probes, with the profile of a modern API, through the gateway."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from tests.conformance.requests import MODEL
from tests.dataplane.gateways import Gateway
from tests.dataplane.waiting import within

pytestmark = [pytest.mark.engine, pytest.mark.slow]

COMMAND = shutil.which("compatcanary")


@pytest.mark.skipif(
    COMMAND is None, reason="needs Node: npm install --global compatcanary@0.2.2, and it on PATH"
)
async def test_compatcanary_scores_100(gateway: Gateway) -> None:
    assert COMMAND is not None
    scan = await asyncio.create_subprocess_exec(
        COMMAND,
        "scan",
        *("--base-url", f"http://127.0.0.1:{gateway.port}/v1"),
        *("--model", MODEL, "--api-key", "any", "--profile", "modern", "--format", "json"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        out, _ = await within(scan.communicate(), 60.0)
    finally:
        if scan.returncode is None:
            scan.kill()
            await scan.wait()
    report = json.loads(out)
    assert report["summary"]["total"] == 7
    assert report["score"] == 100, [r for r in report["results"] if r["status"] != "pass"]
