"""Two real engines behind keys and limits: streams outlive their replica, and all of it is charged.

One installation for the module, on which everything of the gateway is on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.installation import Installation, metric, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow]

STREAMS = 8
TOKENS = 1000


def file_for(store: str) -> str:
    return f"""
proxy_location: Disabled
applications:
- name: gateway
  import_path: aibrix_ray:gateway
  route_prefix: null
  args:
    drain_timeout_s: 5
    auth: {{keys: true, store: "{store}"}}
  deployments:
  - name: gateway
    user_config:
      models: {{tiny: {{wait_for_replica_s: 60, limits: {{requests_per_minute: 100000}}}}}}
- name: tiny
  import_path: aibrix_ray:replica_group
  route_prefix: null
  args:
    model: tiny
    source: builtin:tiny
    engine: {{kind: vllm, max_model_len: 2048, max_num_seqs: 16}}
    replicas: {{min: 2, max: 2}}
    drain_timeout_s: 5
"""


class Site:
    """The installation, and its store as an operator uses it."""

    def __init__(self, installation: Installation, store: str) -> None:
        self.installation = installation
        self.store = store

    def command(self, *words: str) -> Any:
        """Run `aibrix-ray`; return the JSON that it prints."""
        script = Path(sys.executable).with_name("aibrix-ray")
        done = subprocess.run(
            [script, *words, "--store", self.store],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def client(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.installation.url}/v1", api_key=key, max_retries=0, timeout=120.0
        )


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="aibrix-e2e-") as folder:
        store = f"sqlite:///{folder}/tenants.db"
        with Installation(file_for(store)) as running:
            wait_until(lambda: _ready(running) == 2, timeout_s=120, what="two replicas")
            yield Site(running, store)


@pytest.fixture(scope="module")
def key(site: Site) -> str:
    site.command("tenants", "create", "acme", "--tpm", "1000000", "--json")
    created: str = site.command("keys", "create", "--tenant", "acme", "--json")["key"]
    return created


def _ready(installation: Installation) -> int:
    count: int = httpx.get(f"{installation.url}/readyz").json()["ready_replicas"].get("tiny", 0)
    return count


async def completion(client: openai.AsyncOpenAI, number: int) -> dict[str, Any]:
    """Return what a client makes of one greedy stream."""
    stream = await client.completions.create(
        model="tiny",
        prompt=f"Question {number}: what is a replica group?",
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = [chunk async for chunk in stream]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    [usage] = [chunk.usage for chunk in chunks if chunk.usage]
    return {
        "ids": len({(chunk.id, chunk.created) for chunk in chunks}),
        "text": "".join(choice.text for choice in choices),
        "ends": [choice.finish_reason for choice in choices if choice.finish_reason],
        "usage": (usage.prompt_tokens, usage.completion_tokens),
    }


async def completions(site: Site, key: str) -> list[dict[str, Any]]:
    async with site.client(key) as client:
        return await asyncio.gather(*(completion(client, i) for i in range(STREAMS)))


async def test_without_a_key_nothing_is_served(site: Site, key: str) -> None:
    async with site.client("sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await completion(client, 0)


async def test_the_answer_says_what_is_left(site: Site, key: str) -> None:
    async with site.client(key) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=4
        )
    assert raw.headers["x-ratelimit-limit-tokens"] == "1000000"
    assert int(raw.headers["x-ratelimit-remaining-requests"]) < 100_000


async def test_greedy_streams_outlive_a_killed_replica_unchanged(site: Site, key: str) -> None:
    wanted = await completions(site, key)
    assert {tuple(each["ends"]) for each in wanted} == {("length",)}
    running = asyncio.create_task(completions(site, key))
    await asyncio.to_thread(
        wait_until,
        lambda: (
            running.done() or metric(site.installation.url, "aibrix_ray_in_flight_requests ") > 0
        ),
        timeout_s=30,
        what="streams run",
    )
    await asyncio.sleep(0.3)  # well into their answers, far from their ends
    assert not running.done(), running.exception()
    os.kill(site.installation.engines("tiny")[0], signal.SIGKILL)
    found = await running
    assert metric(site.installation.url, "aibrix_ray_streams_resumed_total") > 0
    assert found == wanted


async def test_everything_is_charged(site: Site, key: str) -> None:
    """After the streams of the test before; what was computed twice is charged once."""

    def used() -> int:
        told = site.command("usage", "--group-by", "tenant", "--format", "json")
        rows = told["data"] if isinstance(told, dict) else told
        return sum(row["completion_tokens"] for row in rows)

    wait_until(
        lambda: used() == 2 * STREAMS * TOKENS + 4, timeout_s=30, what="the usage is written"
    )
