"""`gateway`: what file, environment and flags say together, and a process that serves it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from typer.testing import CliRunner, Result

from aibrix_ray.cli import app
from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import standalone
from aibrix_ray.tenants import NewKey, NewTenant, Store, store_url
from tests.dataplane.waiting import within

BACKEND = ("--backend", "m=uds:/run/m.sock")
CHAT = "/v1/chat/completions"
LIMITS = {"requests_per_minute": 60, "tokens_per_minute": 1000, "max_concurrent": 4}


class Served(NamedTuple):
    args: GatewayArgs
    user_config: GatewayUserConfig
    backends: Sequence[Any]
    #: what AIBRIX_RAY_STORE was meanwhile.
    store: str | None


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Served]:
    """What would have been served; nothing listens."""
    found: list[Served] = []

    async def serve(args: GatewayArgs, config: GatewayUserConfig, backends: Sequence[Any]) -> None:
        found.append(Served(args, config, backends, os.environ.get("AIBRIX_RAY_STORE")))

    monkeypatch.setattr(standalone, "serve_standalone", serve)
    monkeypatch.setenv("AIBRIX_RAY_STORE", "")
    return found


def run(*arguments: str | Path, backend: Sequence[str] = BACKEND) -> Result:
    env = {"COLUMNS": "200", "NO_COLOR": "1"}
    command = ["gateway", *backend, *(str(argument) for argument in arguments)]
    return CliRunner().invoke(app, command, env=env)


def ok(served: list[Served], *arguments: str | Path) -> Served:
    result = run(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return served.pop()


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_without_a_file_the_defaults_are_served(served: list[Served]) -> None:
    found = ok(served)
    assert (found.args, found.user_config) == (GatewayArgs(), GatewayUserConfig())
    assert len(found.backends) == 1


def test_a_file_with_keys_and_limits_is_served_whole(served: list[Served], tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/keys.db"
    file = tmp_path / "gateway.yaml"
    file.write_text(f"""
args:
  port: 9000
  auth: {{keys: true, store: '{store}'}}
  http: {{access_log: true}}
user_config:
  models: {{m: {{aliases: [gpt], limits: {json.dumps(LIMITS)}}}}}
  user_limits: {{max_concurrent: 2}}
""")
    found = ok(served, "--config", file)
    assert (found.args.port, found.args.auth.keys, found.args.auth.store) == (9000, True, store)
    assert found.args.http.access_log
    model = found.user_config.models["m"]
    assert (model.aliases, model.limits.model_dump()) == (("gpt",), LIMITS)
    assert found.user_config.user_limits.max_concurrent == 2


def test_json_is_read_as_json(served: list[Served], tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    # A tab, an escaped pair of surrogates, and a number: each of them is something else in YAML.
    file.write_text(
        '{\n\t"args": {"drain_timeout_s": 1e1},\n'
        '\t"user_config": {"models": {"m": {"aliases": ["\\ud83d\\ude00"]}}}\n}'
    )
    found = ok(served, "--config", file)
    assert found.args.drain_timeout_s == 10.0
    assert found.user_config.models["m"].aliases == ("\N{GRINNING FACE}",)


@pytest.mark.parametrize("text", ["", "# nothing\n", "args: {}\n", "user_config: {}\n"])
def test_what_a_file_leaves_out_has_its_default(
    served: list[Served], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    assert ok(served, "--config", file)[:2] == (GatewayArgs(), GatewayUserConfig())


def test_a_flag_is_stronger_than_the_environment_and_that_than_the_file(
    served: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {
        "args": {"port": 9001, "max_body_bytes": 2048},
        "user_config": {"routing": {"policy": "tests.nobody:Policy"}},
    }
    file = write(tmp_path / "gateway.json", data)
    assert ok(served, "--config", file).args.port == 9001
    monkeypatch.setenv("AIBRIX_RAY__GATEWAY__PORT", "9002")
    monkeypatch.setenv("AIBRIX_RAY__GATEWAY__USER_CONFIG__MODELS__M__MAX_ATTEMPTS", "1")
    found = ok(served, "--config", file)
    assert (found.args.port, found.args.max_body_bytes) == (9002, 2048)
    assert found.user_config.models["m"].max_attempts == 1
    assert found.user_config.routing.policy == "tests.nobody:Policy"
    found = ok(served, "--config", file, "--port", "9003", "--policy", "least-request")
    assert found.args.port == 9003
    assert found.user_config.routing.policy == "least-request"
    assert ok(served).args.port == 9002


def test_a_flag_that_says_no_is_given(
    served: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "gateway.json", {"args": {"auth": {"keys": True}}})
    assert ok(served, "--config", file).args.auth.keys
    assert not ok(served, "--config", file, "--no-keys").args.auth.keys
    monkeypatch.setenv("AIBRIX_RAY__GATEWAY__AUTH__KEYS", "true")
    assert not ok(served, "--no-keys").args.auth.keys
    assert not ok(served, "--config", file, "--no-keys").args.auth.keys
    monkeypatch.setenv("AIBRIX_RAY__GATEWAY__AUTH__KEYS", "false")
    assert not ok(served, "--config", file).args.auth.keys
    assert ok(served, "--keys").args.auth.keys


def test_an_address_that_others_reach_needs_keys_or_a_word(served: list[Served]) -> None:
    result = run("--host", "0.0.0.0")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --host (args.auth.keys): got False")
    refused = run("--host", "0.0.0.0", "--no-keys").stderr
    assert refused.startswith("error: --no-keys (args.auth.keys): got False")
    assert served == []
    assert ok(served, "--host", "0.0.0.0", "--keys").args.auth.keys
    assert ok(served, "--host", "0.0.0.0", "--open-to-network").args.auth.open_to_network


def test_the_store_of_the_flag_is_stronger_than_that_of_the_environment(
    served: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIBRIX_RAY_STORE", f"sqlite:///{tmp_path}/env.db")
    url = f"sqlite:///{tmp_path}/flag.db"
    file = write(tmp_path / "gateway.json", {"args": {"auth": {"store": "sqlite:////file.db"}}})
    found = ok(served, "--config", file)
    assert found.store == f"sqlite:///{tmp_path}/env.db"
    found = ok(served, "--config", file, "--keys", "--store", url)
    assert (found.args.auth.store, found.store) == (url, None)


def test_a_store_that_is_none_is_refused_without_its_password(served: list[Served]) -> None:
    result = run("--store", "mysql://me:hush@db/x")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --store: got ")
    assert "hush" not in result.stderr
    assert served == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"args": {"prot": 1}}, ["args.prot: got 1", "did you mean 'port'?"]),
        ({"args": {"port": "9000"}}, ["args.port: got '9000'", "an integer"]),
        ({"args": {"auth": {"key": True}}}, ["args.auth.key: got True", "did you mean 'keys'?"]),
        (
            {"user_config": {"models": {"m": {"max_attempt": 1}}}},
            ["user_config.models.m.max_attempt: got 1", "did you mean 'max_attempts'?"],
        ),
        (
            {"user_config": {"models": {"mm": {}}}},
            ["user_config.models.mm: got 'mm'", "a --backend serves: m", "did you mean 'm'?"],
        ),
        (
            {"user_config": {"routing": {"policy": "least-requests"}}},
            ["user_config.routing.policy", "least-request"],
        ),
        ({"arg": {}}, ["gateway.json: arg: got {}", "did you mean 'args'?"]),
        ({"applications": []}, ["gateway.json: applications", "aibrix-ray serve"]),
        ({"args": None}, ["args: got None", "a mapping"]),
        ({"args": {"listen": "serve"}}, ["args.listen: got 'serve'", "own"]),
        ({"args": {"per_node": 2}}, ["args.per_node: got 2", "one gateway"]),
        ([], ["gateway.json: the file: got []", "args and user_config"]),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_with_the_way_out(
    served: list[Served], tmp_path: Path, data: object, told: list[str]
) -> None:
    result = run("--config", write(tmp_path / "gateway.json", data))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert [text for text in told if text not in line] == []
    assert served == []


def test_every_problem_is_told_and_names_where_it_came_from(
    served: list[Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "gateway.json", {"args": {"keep_alive_s": 0}, "user_config": 1})
    monkeypatch.setenv("AIBRIX_RAY__GATEWAY__MAX_BODY_BYTES", "1")
    monkeypatch.setenv("AIBRIX_RAY__TINY__PORT", "1")
    lines = run("--config", file, "--port", "0").stderr.splitlines()
    assert [line.partition(": got")[0] for line in lines] == [
        "error: AIBRIX_RAY__TINY__PORT",
        "error: --port (args.port)",
        "error: AIBRIX_RAY__GATEWAY__MAX_BODY_BYTES (args.max_body_bytes)",
        "error: args.keep_alive_s",
        "error: user_config",
    ]
    assert served == []


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.yaml", None, "error: --config: got "),
        ("bad.yaml", b"\xff", "error: --config: got "),
        ("bad.yaml", b"args: {port: 1", "bad.yaml: line 1"),
        ("bad.yaml", b"args: {port: 1, port: 2}", "each key once"),
        ("bad.json", b'{"args": 1,}', "bad.json: line 1, column "),
        ("bad.json", b'{"args": {}, "args": {}}', "each key of a mapping once"),
        ("bad.json", b'{"args": {"keep_alive_s": NaN}}', "no such number"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    served: list[Served], tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    result = run("--config", file)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert told in line
    assert served == []


async def test_a_process_serves_what_its_file_says(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    store = Store(store_url(flag=url))
    store.tenants.create(NewTenant(name="acme", requests_per_minute=60))
    key = store.keys.create(NewKey(tenant="acme")).key
    store.close()
    data = {
        "args": {"port": 1, "auth": {"keys": True, "store": url}},
        "user_config": {"models": {"m": {"aliases": ["gpt"], "limits": LIMITS}}},
    }
    file = write(tmp_path / "gateway.json", data)
    port = free_port()
    async with gateway_process("--config", str(file), "--port", str(port)) as http:
        answer = await within(_once_it_listens(http))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        http.headers["Authorization"] = f"Bearer {key}"
        answer = await http.post(CHAT, json={"model": "other"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        models = (await http.get("/v1/models")).json()["data"]
        assert {model["id"] for model in models} == {"m", "gpt"}


async def test_a_process_asks_for_no_keys_where_the_flag_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "gateway.json", {"args": {"auth": {"keys": True}}})
    port = free_port()
    async with gateway_process("--config", str(file), "--port", str(port), "--no-keys") as http:
        assert (await within(_once_it_listens(http))).status_code == 404


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@asynccontextmanager
async def gateway_process(*flags: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of a gateway that is a process of its own; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from aibrix_ray.cli import main; main()", "gateway"),
        *(*BACKEND, *flags),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "AIBRIX_RAY_STORE": ""},
    )
    assert process.stdout is not None
    try:
        line = (await within(process.stdout.readline())).decode()
        url = line.split()[2].rstrip(",")
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            yield http
        process.send_signal(signal.SIGTERM)
        assert await within(process.wait()) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _once_it_listens(http: httpx.AsyncClient) -> httpx.Response:
    """Return the answer to a request for a model that is not there."""
    while True:
        try:
            return await http.post(CHAT, json={"model": "other"})
        except httpx.ConnectError:
            await asyncio.sleep(0.02)
