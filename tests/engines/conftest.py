"""One real vLLM engine for the tests of this folder, in a process of its own.

It stands behind `ReplicaApp` on a Unix socket, as in a replica; `/control/…` beside it answers what
a test asks the engine itself. The tests' process imports no vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from aibrix_ray.asgi import HttpServer, Message, Receive, Scope, Send, unix_socket
from aibrix_ray.config.engine import VllmEngineConfig
from aibrix_ray.dataplane import FORWARDED_PATHS
from aibrix_ray.engines import ReplicaIdentity
from aibrix_ray.engines.answers import answers_of
from aibrix_ray.engines.guard import EngineFolder, descendants, mapped_names
from aibrix_ray.engines.meta import ReplicaApp
from aibrix_ray.models import resolve_model

MODEL = "tiny"
START_TIMEOUT_S = 180.0
CONTEXT = 1024


async def eventually(
    holds: Callable[[], Awaitable[bool] | bool], *, within_s: float, what: str
) -> float:
    """Poll until something holds; return the seconds it took, fail past the deadline."""
    begun_s = time.monotonic()
    while True:
        result = holds()
        if await result if isinstance(result, Awaitable) else result:
            return time.monotonic() - begun_s
        if time.monotonic() > begun_s + within_s:
            pytest.fail(f"not within {within_s} s: {what}")
        await asyncio.sleep(0.02)


@dataclasses.dataclass
class EngineProcess:
    """A process that owns an engine and serves it on `uds`."""

    process: subprocess.Popen[bytes]
    uds: str
    log: Path

    @property
    def pid(self) -> int:
        """The pid of the engine's owner."""
        return self.process.pid

    def client(self) -> httpx.AsyncClient:
        """Return a client of the listener."""
        transport = httpx.AsyncHTTPTransport(uds=self.uds)
        return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=60.0)

    async def stats(self) -> dict[str, Any]:
        """Return what `Engine.stats` says."""
        async with self.client() as client:
            answer = await client.get("/control/stats")
            stats: dict[str, Any] = answer.raise_for_status().json()
            return stats

    async def running(self) -> int:
        """Return how many sequences the engine's last step held."""
        return int((await self.stats())["running"])

    def kill(self) -> None:
        """SIGKILL the owner and what is below it, and remove what that leaves."""
        below = descendants(self.pid)
        for pid in (self.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        EngineFolder.sweep(Path(self.uds).parent / "run")


@contextlib.contextmanager
def engine_process(
    folder: Path, model: Path, *, new_session: bool = False, **engine: Any
) -> Iterator[EngineProcess]:
    """Start an engine's owner, wait until it answers, and kill it in the end."""
    uds, log = str(folder / "e.sock"), folder / "engine.log"
    told = json.dumps({"uds": uds, "model": str(model), "engine": engine})
    with log.open("wb") as out:
        process = subprocess.Popen(
            # Not `-m`: the engine's processes would import this module as their main one.
            [sys.executable, "-c", "from tests.engines import conftest; conftest.main()", told],
            stdout=out,
            stderr=out,
            start_new_session=new_session,
            env=os.environ | {"AIBRIX_RAY_RUNTIME_DIR": str(folder / "run")},
        )
    owner = EngineProcess(process, uds, log)
    try:
        _wait_until_ready(owner)
        yield owner
    finally:
        owner.kill()


def _wait_until_ready(owner: EngineProcess) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and owner.process.poll() is None:
        if Path(owner.uds + ".ready").exists():
            return
        time.sleep(0.05)
    pytest.fail(f"the engine did not start:\n{owner.log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The model that comes with the package."""
    return Path(resolve_model("builtin:tiny"))


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for vLLM's sockets, which pytest's own do not."""
    with tempfile.TemporaryDirectory(prefix="ae-", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Iterator[EngineProcess]:
    """The engine that all tests share; it is stopped in order, which leaves nothing."""
    with short_folder() as folder, _shared_engine(folder, checkpoint) as owner:
        yield owner
        names = {name for pid in descendants(owner.pid) for name in mapped_names(pid)}
        assert names
        owner.process.terminate()
        assert owner.process.wait(60.0) == 0, owner.log.read_text()[-4000:]
        assert not [name for name in names if Path("/dev/shm", name).exists()]
        assert not list((folder / "run").iterdir())


def _shared_engine(folder: Path, checkpoint: Path) -> AbstractContextManager[EngineProcess]:
    return engine_process(
        folder,
        checkpoint,
        max_model_len=CONTEXT,
        max_num_seqs=8,
        tool_parser="hermes",  # chats with tools stream through it
        clean_answers=False,  # vLLM's own answers are what is looked at here
        # Else a model that knows nothing of JSON fills its tokens with legal blanks.
        args={
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            "seed": 7,
        },
    )


@pytest.fixture
async def client(engine: EngineProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the shared engine's listener."""
    async with engine.client() as client:
        yield client


def main() -> None:
    """Own an engine until SIGTERM: the child's side of `engine_process`."""
    asyncio.run(_own_engine(json.loads(sys.argv[1])))


async def _own_engine(told: dict[str, Any]) -> None:
    from aibrix_ray.engines.vllm_engine import VllmEngine

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    config = VllmEngineConfig(**told["engine"])
    engine = VllmEngine(
        ReplicaIdentity(replica_id="r-1", group="g", model=MODEL, epoch="epoch-1"),
        config,
        source=told["model"],
        revision=None,
        tensor_parallel=1,
        pipeline_parallel=1,
        accelerator=None,
    )
    begun_s = time.monotonic()
    await engine.start()
    print(f"started in {time.monotonic() - begun_s:.1f} s", flush=True)
    answers = answers_of(engine.openai_app(), config)
    served = ReplicaApp(answers, paths=FORWARDED_PATHS)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/control/"):
            return await served(scope, receive, send)
        status, body = await _control(engine, scope["path"])
        start: Message = {"type": "http.response.start", "status": status, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    server = HttpServer(app, keep_alive_s=60.0)
    await server.listen(unix_socket(told["uds"]))
    Path(told["uds"] + ".ready").touch()
    await stopped.wait()
    await server.close()
    await engine.stop()
    await engine.stop()


async def _control(engine: Any, path: str) -> tuple[int, object]:
    if path == "/control/stats":
        return 200, dataclasses.asdict(engine.stats())
    try:
        await engine.check_health()
    except Exception as error:
        return 500, repr(error)
    return 200, "healthy"
