"""The other doors than the gateway's own port: Python handles, Serve's proxy, and a taken port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.installation import Installation, simulated_file, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PYTHON_CALLER = """
import asyncio, json
import ray
from ray import serve
import aibrix_ray
from aibrix_ray.errors import ApiError

async def main():
    client = aibrix_ray.connect()
    found = {}
    body = dict(model="sim", max_tokens=5, ignore_eos=True)
    messages = [{"role": "user", "content": "Hello"}]
    chat = await client.chat(messages=messages, **body)
    found["chat"] = chat["usage"]["completion_tokens"]
    chunks = [c async for c in client.chat_stream(messages=messages, **body)]
    found["stream"] = "".join(
        choice["delta"].get("content") or "" for c in chunks for choice in c["choices"]
    )
    found["same"] = found["stream"] == chat["choices"][0]["message"]["content"]
    text = [c async for c in client.completions_stream(prompt="Hello", **body)]
    found["completions"] = text[-1]["choices"][0]["finish_reason"]
    found["plain"] = (await client.completions(prompt="Hello", **body))["object"]
    found["embeddings"] = len((await client.embeddings(model="sim", input="Hi"))["data"])
    for call in (
        client.chat(model="nope", messages=messages),
        client.completions(model="sim", prompt="a", top_p=2.0),
    ):
        try:
            await call
        except ApiError as error:
            found.setdefault("errors", []).append([error.status, str(error.code), error.param])
    handle = serve.get_deployment_handle("gateway", "gateway")
    answer = await handle.chat.remote({"messages": messages, **body})
    found["handle"] = answer["object"]
    print("FOUND" + json.dumps(found))

ray.init(address="auto", log_to_driver=False)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with Installation(simulated_file()) as running:
        yield running


def test_python_callers_get_what_http_clients_get(installation: Installation) -> None:
    env = {**os.environ, "RAY_ADDRESS": installation.ray_address, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [sys.executable, "-c", PYTHON_CALLER],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "FOUND" in done.stdout, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("FOUND")[2].splitlines()[0])
    assert found["chat"] == 5
    assert found["same"]
    assert found["completions"] == "length"
    assert found["plain"] == "text_completion"
    assert found["embeddings"] == 1
    assert found["errors"][0] == [404, "model_not_found", "model"]
    assert found["errors"][1][0] == 400
    assert found["errors"][1][2] == "top_p"
    assert found["handle"] == "chat.completion"


def test_status_shows_groups_and_replicas(installation: Installation) -> None:
    env = {**os.environ, "RAY_ADDRESS": installation.ray_address}
    command = [sys.executable, "-c", "from aibrix_ray.cli import main; main()"]
    done = subprocess.run(
        [*command, "status", "--once", "--json"],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"sim"' in done.stdout


def test_a_stranger_on_the_port_is_found_and_named(installation: Installation) -> None:
    """A gateway never shares its port with another program, also not in silence."""
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        text = simulated_file(per_node=1)
        clash = Installation(text, env={"AIBRIX_RAY__GATEWAY__PORT": str(port)})
        with pytest.raises(AssertionError, match="the driver has ended"), clash:
            pass
        said = clash.log.read_text()
    assert str(port) in said
    assert "gateway.args.port" in said
    assert f"pid {os.getpid()}" in said


def test_the_same_application_serves_behind_serve_s_proxy() -> None:
    text = (
        simulated_file(per_node=1)
        .replace("proxy_location: Disabled", "proxy_location: HeadOnly")
        .replace("port: 8000", "listen: serve")
        .replace("route_prefix: null", "route_prefix: /", 1)
    )
    installation = Installation(text)
    text = text.replace(
        "applications:",
        f"http_options: {{host: 127.0.0.1, port: {installation.port}}}\napplications:",
    )
    installation.file.write_text(text)
    installation.unset("AIBRIX_RAY__GATEWAY__PORT")
    with installation as running:
        body = {"model": "sim", "prompt": "Hello", "max_tokens": 4, "ignore_eos": True}
        plain = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
        assert plain.status_code == 200
        stream = httpx.post(
            f"{running.url}/v1/completions", json={**body, "stream": True}, timeout=60
        )
        assert stream.text.endswith("data: [DONE]\n\n")
        assert httpx.post(f"{running.url}/v1/completions", json={"model": "x"}).status_code == 404
        with httpx.stream(
            "POST",
            f"{running.url}/v1/completions",
            json={**body, "max_tokens": 3000, "stream": True},
            timeout=60,
        ) as left:
            next(left.iter_bytes())
        wait_until(lambda: _in_flight(running) == 0, timeout_s=5.0, what="aborted")


def test_a_model_at_zero_replicas_is_known_and_its_requests_wait() -> None:
    """U19: never a final 404 for a model that is only cold."""
    text = simulated_file(per_node=1).replace("{min: 1, max: 1}", "{min: 0, max: 1}")
    installation = Installation(text.replace("wait_for_replica_s: 30", "wait_for_replica_s: 1"))
    installation.wants_replicas = False
    body = {"model": "sim", "prompt": "Hello"}
    with installation as running:
        wait_until(
            lambda: '"sim"' in httpx.get(f"{running.url}/v1/models").text,
            timeout_s=20.0,
            what="the model is listed",
        )
        answer = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "no_ready_replica"


def _in_flight(installation: Installation) -> int:
    text = httpx.get(f"{installation.url}/metrics").text
    (line,) = [x for x in text.splitlines() if x.startswith("aibrix_ray_in_flight_requests ")]
    return int(float(line.split()[1]))
