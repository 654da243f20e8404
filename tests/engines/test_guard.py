"""Processes are ended for real: owners die by SIGKILL, alone and with everybody around them."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import multiprocessing.shared_memory
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from aibrix_ray.engines import guard
from aibrix_ray.engines.guard import EngineFolder
from tests.engines.conftest import eventually

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GONE_WITHIN_S = 10.0


def is_gone(pid: int) -> bool:
    fields = guard._stat(pid)
    return not fields or fields[0] == "Z"


def are_gone(pids: Iterable[int], names: Iterable[str] = (), paths: Iterable[str] = ()) -> bool:
    return (
        all(is_gone(pid) for pid in pids)
        and not any(os.path.exists(f"/dev/shm/{name}") for name in names)
        and not any(os.path.exists(path) for path in paths)
    )


# What runs in the processes below. Each prints one line about itself and then waits to be killed.


def child_main(report: Any, guarded: bool) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # EngineCore has a handler too
    if guarded:
        guard.die_with_parent()
    shared = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
    lock = multiprocessing.get_context("spawn").Lock()
    report.send({"pid": os.getpid(), "names": sorted(guard.mapped_names(os.getpid()))})
    threading.Event().wait()
    print(shared, lock)  # both are used until the end


def owner_main(told: str) -> None:
    """Own a child, as a replica owns its EngineCore."""
    options = json.loads(told)
    if options["raylet"]:
        guard.exit_with_raylet(options["raylet"])
    if options["socket"]:
        guard.remove_at_end(options["socket"])
        socket.socket(socket.AF_UNIX).bind(options["socket"])
    about = own_child(guarded=options["guarded"], folder=options["folder"])
    print(json.dumps(about), flush=True)
    threading.Event().wait()


def own_child(*, guarded: bool, folder: bool) -> dict[str, Any]:
    """Start a child with shared memory and a lock, and tell all that must go with it."""
    made = EngineFolder.create() if folder else None
    if made is not None:
        os.environ[guard.FOLDER_VARIABLE] = str(made.path)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=child_main, args=(theirs, guarded), daemon=True)
    child.start()
    _CHILDREN.append(child)
    about: dict[str, Any] = ours.recv()
    if made is not None:
        made.note_names()
    below = guard.descendants(os.getpid())  # the resource tracker too
    return about | {"folder": str(made and made.path), "below": below}


_CHILDREN: list[Any] = []  # a child outlives no collection of its Process object by accident


def start_owner(
    tmp_path: Path,
    *,
    guarded: bool = True,
    raylet: int | None = None,
    socket_path: str | None = None,
    folder: bool = False,
    prefix: tuple[str, ...] = (),
) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    told = {"guarded": guarded, "raylet": raylet, "socket": socket_path, "folder": folder}
    code = "import sys; from tests.engines import test_guard; test_guard.owner_main(sys.argv[1])"
    owner = subprocess.Popen(
        [*prefix, sys.executable, "-c", code, json.dumps(told)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"AIBRIX_RAY_RUNTIME_DIR": str(tmp_path / "run")},
    )
    assert owner.stdout is not None
    with owner.stdout:
        return owner, json.loads(owner.stdout.readline())


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@linux
async def test_a_child_dies_with_its_parent_and_takes_its_names_along(tmp_path: Path) -> None:
    owner, about = start_owner(tmp_path, folder=True)
    assert {name.split("_")[0][:7] for name in about["names"]} == {"psm", "sem.mp-"}
    # The resource tracker, which would unlink the names, goes as in a kill of the process group.
    trackers = [pid for pid in about["below"] if pid != about["pid"]]
    kill(*trackers, owner.pid)
    owner.wait()
    await eventually(
        lambda: are_gone([about["pid"]], about["names"], [about["folder"]]),
        within_s=GONE_WITHIN_S,
        what="the child, its names and the folder are gone",
    )


@linux
async def test_an_unguarded_child_shows_what_the_guard_is_for(tmp_path: Path) -> None:
    owner, about = start_owner(tmp_path, guarded=False)
    kill(*[pid for pid in about["below"] if pid != about["pid"]], owner.pid)
    owner.wait()
    try:
        await eventually(
            lambda: guard._stat(about["pid"])[1] != str(owner.pid),
            within_s=GONE_WITHIN_S,
            what="the child is an orphan",
        )
        assert not is_gone(about["pid"])
    finally:
        kill(about["pid"])
        guard._unlink_names(about["names"])


def heir_main(report: Any) -> None:
    guard.die_with_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    report.send("the sentinel fired")
    threading.Event().wait(0.3)  # time enough to be ended by mistake
    report.send("alive")


def test_a_sentinel_that_a_living_parent_closed_ends_nobody() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child: Any = context.Process(target=heir_main, args=(theirs,))
    child.start()
    theirs.close()
    child._popen.finalizer()  # what the collection of the parent's Process object does
    assert ours.poll(30.0)
    assert ours.recv() == "the sentinel fired"
    assert ours.recv() == "alive"
    child._popen.poll()
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


def test_outside_of_a_child_the_guard_does_nothing() -> None:
    before = threading.active_count()
    guard.die_with_parent()
    assert threading.active_count() == before


@linux
async def test_a_replica_ends_with_its_raylet_and_leaves_nothing(tmp_path: Path) -> None:
    raylet = subprocess.Popen(["sleep", "600"])
    uds = str(tmp_path / "replica.sock")
    # Unguarded, so that it is the replica's end that ends the child.
    owner, about = start_owner(
        tmp_path, guarded=False, raylet=raylet.pid, socket_path=uds, folder=True
    )
    raylet.kill()
    await eventually(
        lambda: are_gone([owner.pid, *about["below"]], about["names"], [uds, about["folder"]]),
        within_s=GONE_WITHIN_S,
        what="the replica, its processes, names and socket are gone",
    )
    raylet.wait()
    owner.wait()


@linux
async def test_a_replica_of_a_dead_raylet_ends_at_once(tmp_path: Path) -> None:
    raylet = subprocess.Popen(["true"])
    raylet.wait()
    watcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, threading; from aibrix_ray.engines import guard;"
            "guard.exit_with_raylet(int(sys.argv[1])); threading.Event().wait()",
            str(raylet.pid),
        ]
    )
    assert watcher.wait(timeout=30.0) == 1


async def test_without_pidfd_the_raylet_is_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(guard, "_POLL_S", 0.01)
    raylet = subprocess.Popen(["sleep", "600"])
    waiter = threading.Thread(target=guard._wait_for_exit, args=(raylet.pid,), daemon=True)
    waiter.start()
    assert waiter.is_alive()
    raylet.kill()
    raylet.wait()
    await eventually(lambda: not waiter.is_alive(), within_s=5.0, what="the end was seen")


@linux
def test_a_semaphore_is_found_by_its_inode(tmp_path: Path) -> None:
    lock: Any = multiprocessing.get_context("spawn").Lock()
    name = "sem." + lock._semlock.name.lstrip("/")
    maps = Path("/proc/self/maps").read_text()
    assert name not in maps  # its maker sees the first, deleted name of the same inode
    assert name in guard.mapped_names(os.getpid())


def test_only_shared_memory_counts_in_a_map() -> None:
    maps = (
        "7f10-7f20 rw-s 00000000 00:1b 62                  /dev/shm/psm_58be2c77\n"
        "7f30-7f40 rw-s 00000000 00:1b 60                  /dev/shm/sem.XWo509 (deleted)\n"
        "7f50-7f60 r-xp 00000000 08:01 77                  /usr/lib/libc.so.6\n"
        "7f70-7f80 rw-p 00000000 00:00 0 \n"
    )
    device = os.makedev(0, 0x1B)
    assert guard.mapped_inodes(maps) == {(device, 62), (device, 60)}


@linux
@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("psm_58be2c77", True),
        ("sem.mp-is7xa9j_", True),
        ("vllm_offload_6d2535ec.mmap", True),
        ("aibrix_kv_58be2c77", False),
        ("plasma12ab", False),
        ("psm_of_somebody", False),
        ("sem.other", False),
    ],
)
def test_names_of_other_forms_are_never_ours(name: str, is_ours: bool) -> None:
    assert bool(guard._OURS.fullmatch(name)) == is_ours


def dead_owner(folder: Path) -> None:
    """Write an owner that has lived here and does not any more."""
    process = subprocess.Popen(["sleep", "600"])
    owner = guard._identity(process.pid)
    process.kill()
    process.wait()
    (folder / "owner").write_text(owner)


@linux
def test_a_sweep_removes_what_dead_owners_left(tmp_path: Path) -> None:
    dead, living = EngineFolder.create(tmp_path), EngineFolder.create(tmp_path)
    shared = multiprocessing.shared_memory.SharedMemory(create=True, size=64)
    rendezvous = tmp_path / ("vllm_dist_" + "0" * 32)
    rendezvous.touch()
    (dead.path / rendezvous.name).symlink_to(rendezvous)
    (dead.path / "names").write_text(shared.name)
    dead_owner(dead.path)
    shared.close()

    assert EngineFolder.sweep(tmp_path) == [dead.path]

    assert not dead.path.exists()
    assert living.path.exists()
    assert not rendezvous.exists()
    with pytest.raises(FileNotFoundError):
        multiprocessing.shared_memory.SharedMemory(shared.name)
    multiprocessing.resource_tracker.unregister("/" + shared.name, "shared_memory")


@linux
def test_a_sweep_leaves_what_it_cannot_judge(tmp_path: Path) -> None:
    foreign, unowned = EngineFolder.create(tmp_path), EngineFolder.create(tmp_path)
    dead_owner(foreign.path)
    pid, started, _ = (foreign.path / "owner").read_text().split()
    (foreign.path / "owner").write_text(f"{pid} {started} pid:[1]")  # another container's
    (unowned.path / "owner").unlink()  # being made just now

    assert EngineFolder.sweep(tmp_path) == []


@linux
def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    folder = EngineFolder.create(tmp_path)
    pid, started, namespace = (folder.path / "owner").read_text().split()
    (folder.path / "owner").write_text(f"{pid} {int(started) - 1} {namespace}")
    assert EngineFolder.sweep(tmp_path) == [folder.path]


def test_a_folder_is_removed_twice_without_complaint(tmp_path: Path) -> None:
    folder = EngineFolder.create(tmp_path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


def test_a_long_runtime_folder_is_not_used_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="x" * 50, dir="/tmp") as long:
        monkeypatch.setenv("AIBRIX_RAY_RUNTIME_DIR", long)
        folder = EngineFolder.create()
        folder.remove()
        assert len(str(folder.path)) + 37 <= 107


RAY_DRIVER = """
import json, os, ray, sys
from aibrix_ray.engines import guard
from tests.engines import test_guard
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)

@ray.remote
class Replica:
    def own(self):
        guard.exit_with_raylet()
        about = test_guard.own_child(guarded=True, folder=True)
        raylet = int(os.environ.get(guard.RAYLET_VARIABLE) or os.getppid())
        return about | {"replica": os.getpid(), "raylet": raylet}

print(json.dumps(ray.get((replica := Replica.remote()).own.remote())), flush=True)
sys.stdin.read()
"""


@pytest.mark.ray
@linux
@pytest.mark.parametrize("victim", ["replica", "raylet"])
async def test_a_ray_actor_ends_and_leaves_nothing(tmp_path: Path, victim: str) -> None:
    # Of a dead actor Ray also ends the process group: SIGTERM, and SIGKILL 0.2 s later.
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RAY_DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ
        | {
            "AIBRIX_RAY_RUNTIME_DIR": str(tmp_path / "run"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    try:
        assert driver.stdout is not None
        assert driver.stdin is not None
        with driver.stdout, driver.stdin:
            about = json.loads(driver.stdout.readline())
            assert "raylet" in Path(f"/proc/{about['raylet']}/cmdline").read_text()
            kill(about[victim])
            await eventually(
                lambda: are_gone(
                    [about["replica"], *about["below"]], about["names"], [about["folder"]]
                ),
                within_s=GONE_WITHIN_S,
                what="the actor and all of its child are gone",
            )
    finally:
        for pid in (*guard.descendants(driver.pid), driver.pid):
            kill(pid)
        driver.wait()
