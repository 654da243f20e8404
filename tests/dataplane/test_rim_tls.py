"""A gateway that speaks TLS, for its clients and for the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import trustme
from typer.testing import CliRunner

from aibrix_ray.cli import app as cli
from aibrix_ray.config import GatewayArgs
from aibrix_ray.dataplane.listener import make_server
from aibrix_ray.errors import ConfigError
from tests.asgi.certificates import files_in, trusting
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.waiting import within

DELTA = b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}}]}\n\n'


async def stream(call: Call) -> None:
    await call.begin(SSE)
    await call.write(DELTA)
    await call.end(DONE)


async def test_a_stream_comes_through_tls(
    backend: MakeBackend, gateway: MakeGateway, tmp_path: Path
) -> None:
    authority, files = trustme.CA(), files_in(tmp_path)
    files.write(authority.issue_cert("localhost"))
    tls = {"cert_file": str(files.cert), "key_file": str(files.key)}
    running = await gateway([await backend(stream)], args={"http": {"tls": tls}})
    url = f"https://localhost:{running.port}"
    async with httpx.AsyncClient(
        base_url=url, verify=trusting(authority), trust_env=False
    ) as client:
        for _ in range(2):
            answer = await client.post("/v1/chat/completions", json={"model": "m", "stream": True})
            assert answer.content == DELTA + DONE


async def test_the_chat_command_talks_to_it(
    backend: MakeBackend, gateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, files = trustme.CA(), files_in(tmp_path)
    files.write(authority.issue_cert("localhost"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = {"cert_file": str(files.cert), "key_file": str(files.key)}
    running = await gateway([await backend(stream)], args={"http": {"tls": tls}})
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("NO_PROXY", "*")
    command = ["chat", "hi", "--url", f"https://localhost:{running.port}"]
    result = await within(asyncio.to_thread(CliRunner().invoke, cli, command))
    assert (result.output.strip(), result.exit_code) == ("hello", 0)


def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    tls = {"cert_file": str(tmp_path / "none.crt"), "key_file": str(tmp_path / "none.key")}
    args = GatewayArgs.model_validate({"http": {"tls": tls}})
    with pytest.raises(ConfigError, match="on every node with a gateway") as refused:
        make_server(lambda *_: asyncio.sleep(0), args)
    assert refused.value.path == "gateway.args.http.tls.cert_file"
