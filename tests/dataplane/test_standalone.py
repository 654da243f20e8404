"""A gateway without Ray, as a process of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import Address, GatewayApp
from aibrix_ray.dataplane.standalone import apply_backends, parse_backend
from aibrix_ray.errors import ConfigError
from tests.dataplane.backends import MakeBackend
from tests.dataplane.waiting import within

ROOT = Path(__file__).parents[2]

RUN = """
import asyncio, sys
from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane.standalone import parse_backend, serve_standalone
backends = [parse_backend(text) for text in sys.argv[2:]]
args = GatewayArgs(port=int(sys.argv[1]))
asyncio.run(serve_standalone(args, GatewayUserConfig(), backends))
"""


@pytest.mark.parametrize(
    ("text", "model", "address"),
    [
        ("m=uds:/run/x.sock", "m", Address(uds="/run/x.sock")),
        ("m=http://10.0.0.1:8001", "m", Address(host="10.0.0.1", port=8001)),
        ("org/m=http://[::1]:80/", "org/m", Address(host="::1", port=80)),
        ("m=http://name:9", "m", Address(host="name", port=9)),
    ],
)
def test_a_backend_is_a_model_and_an_address(text: str, model: str, address: Address) -> None:
    assert parse_backend(text) == (model, address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "m=",
        "=uds:/x",
        "m=uds:",
        "m=/run/x.sock",
        "m=http://host",
        "m=https://host:1",
        "http://host:1",
        "=http://host:1",
        "m=http://:1",
    ],
)
def test_what_is_no_backend_is_refused_with_both_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"uds:PATH or MODEL=http://HOST:PORT") as refused:
        parse_backend(text)
    assert (refused.value.path, refused.value.value) == ("--backend", text)


@pytest.mark.parametrize("text", ["m=http://host:port", "m=http://host:70000", "m=http://[::1:1"])
def test_a_port_that_is_none_is_refused_in_the_same_words(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_backend(text)


async def test_backends_are_the_whole_fleet() -> None:
    app = GatewayApp(GatewayArgs(), GatewayUserConfig())
    apply_backends(
        app,
        [("m", Address(uds="/1")), ("n", Address(uds="/2")), ("m", Address(uds="/3"))],
    )
    assert app.ready
    ready = {name: [r.replica_id for r in m.ready] for name, m in app.pipeline.models.items()}
    assert ready == {"m": ["m-0", "m-1"], "n": ["n-0"]}


async def test_it_serves_until_it_is_told_to_stop(backend: MakeBackend) -> None:
    replica = await backend()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, str(port), f"m=uds:{replica.address}", cwd=ROOT
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            answer = await within(_until_it_answers(http))
            assert answer.json() == {"status": "ok"}
            answer = await http.post("/v1/chat/completions", json={"model": "m"})
            assert (answer.status_code, answer.headers["target-replica"]) == (200, "m-0")
        process.send_signal(signal.SIGTERM)
        assert await within(process.wait()) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_it_answers(http: httpx.AsyncClient) -> httpx.Response:
    while True:
        try:
            return await http.get("/healthz")
        except httpx.ConnectError:
            await asyncio.sleep(0.02)
