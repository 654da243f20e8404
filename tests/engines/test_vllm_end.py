"""How an engine ends: by SIGKILL of its owner, by the death of its core, and in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from aibrix_ray.engines import guard
from tests.engines.carried import COMPLETIONS, TOKENS, Reading, ask_socket
from tests.engines.conftest import MODEL, EngineProcess, engine_process, eventually, short_folder
from tests.engines.test_guard import are_gone, is_gone, kill

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

GONE_WITHIN_S = 10.0
APART = {"distributed_executor_backend": "mp"}


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as folder:
        (folder / "tmp").mkdir()
        yield folder


@pytest.fixture
def owner(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EngineProcess]:
    """An engine of the test's own, with its temporary files in a folder of their own.

    Its process group is its own too: nobody's kill of a group can have helped. Its worker is a
    process of its own, as that of a model on several accelerators is, and so there is more to leave
    behind.
    """
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    with engine_process(
        folder, checkpoint, new_session=True, max_model_len=4096, args=APART
    ) as owner:
        yield owner


@dataclass(frozen=True)
class Remains:
    """What would be left of an engine: its processes, names in /dev/shm and files."""

    core: int
    worker: int
    tracker: int
    names: frozenset[str]
    folder: Path

    @property
    def files(self) -> list[Path]:
        """Everything but torch's cache, which is there to stay."""
        places = [self.folder / "run", self.folder / "tmp"]
        return [p for place in places for p in place.iterdir() if "torchinductor" not in p.name]

    def nothing_is_left(self) -> bool:
        pids = (self.core, self.worker, self.tracker)
        return are_gone(pids, self.names) and not self.files


async def look(owner: EngineProcess, folder: Path) -> Remains:
    """Find what belongs to a running engine."""
    below = guard.descendants(owner.pid)
    command = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below}
    core, worker, tracker = (
        next(pid for pid in below if word in command[pid])
        for word in (b"EngineCore", b"Worker", b"resource_tracker")
    )
    names = frozenset(name for pid in below for name in guard.mapped_names(pid))
    assert sorted(name[:4] for name in names) == ["psm_", "psm_", "sem."]
    # The worker notes the file by which its ranks met within a second.
    await eventually(
        lambda: any((folder / "run").glob("engine-*/vllm_dist_*")),
        within_s=GONE_WITHIN_S,
        what="the rendezvous is noted",
    )
    remains = Remains(core, worker, tracker, names, folder)
    assert [path.name[:7] for path in remains.files] == ["engine-", "vllm_di"]
    return remains


async def busy(owner: EngineProcess) -> asyncio.Task[None]:
    """Keep the engine generating."""

    async def ask() -> None:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 3900, "n": 4, "ignore_eos": True}
        async with owner.client() as client:
            while True:
                await client.post("/v1/completions", json=body)

    task = asyncio.create_task(ask())

    async def runs() -> bool:
        return await owner.running() > 0

    await eventually(runs, within_s=60.0, what="the engine generates")
    return task


async def test_sigkill_of_the_owner_leaves_nothing(owner: EngineProcess, folder: Path) -> None:
    remains = await look(owner, folder)
    requests = await busy(owner)
    # Python's resource tracker would unlink the names; a kill of the process group takes it along.
    kill(remains.tracker, owner.pid)
    owner.process.wait()
    await eventually(
        remains.nothing_is_left, within_s=GONE_WITHIN_S, what="nothing is left of the engine"
    )
    with pytest.raises(httpx.TransportError):
        await requests


async def test_sigkill_of_everybody_is_swept_by_the_next_start(
    owner: EngineProcess, folder: Path
) -> None:
    remains = await look(owner, folder)
    everybody = (owner.pid, remains.tracker, remains.core, remains.worker)
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)  # so that none sees another one die, and tidies up
    kill(*everybody)
    owner.process.wait()
    assert remains.files
    assert all(Path("/dev/shm", name).exists() for name in remains.names)
    assert len(guard.EngineFolder.sweep(folder / "run")) == 1
    await eventually(
        remains.nothing_is_left, within_s=GONE_WITHIN_S, what="nothing is left of the engine"
    )


async def test_a_dead_core_cuts_carried_streams_and_its_owner_ends_in_order(
    owner: EngineProcess, folder: Path
) -> None:
    remains = await look(owner, folder)
    body = {"model": MODEL, "prompt": "a", "max_tokens": 3900, "ignore_eos": True, "stream": True}
    streams = [
        asyncio.create_task(ask_socket(owner.uds, COMPLETIONS, body, headers))
        for headers in (TOKENS, {})
    ]

    async def both_run() -> bool:
        for stream in streams:
            assert not stream.done(), stream
        return await owner.running() == 2

    await eventually(both_run, within_s=60.0, what="the engine generates")
    kill(remains.core)
    carried, other = await asyncio.gather(*streams)
    assert carried.broken
    assert Reading(carried.messages).ids
    assert not any(b'"error"' in message for message in carried.messages)
    assert not other.broken
    assert b'"error"' in other.messages[-2]

    async def is_ill() -> bool:
        async with owner.client() as client:
            answer = await client.get("/control/health")
        return answer.status_code == 500 and "EngineDead" in answer.text

    await eventually(is_ill, within_s=GONE_WITHIN_S, what="the health check fails")
    await eventually(
        lambda: is_gone(remains.worker), within_s=GONE_WITHIN_S, what="the worker is gone"
    )
    owner.process.terminate()
    assert await asyncio.to_thread(owner.process.wait, 60.0) == 0
    await eventually(
        remains.nothing_is_left, within_s=GONE_WITHIN_S, what="nothing is left of the engine"
    )
