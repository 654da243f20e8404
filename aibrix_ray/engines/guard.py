"""Ends an engine's processes with whoever owns them, and removes what they would leave behind.

Three deaths come without a goodbye. The replica's: EngineCore and the workers must go with it
(`die_with_parent`, which vLLM loads in each of them as a plug-in). The raylet's: Ray leaves its
workers alive for half a minute and more (`exit_with_raylet`). And all of them at once: then the
next start on the machine sweeps (`EngineFolder`).

What stays behind are names, not memory that one would notice: `/dev/shm/psm_*` (vLLM's message
queues between EngineCore and workers), `/dev/shm/sem.mp-*` (their lock), and the sockets of vLLM's
ZeroMQ, which `EngineFolder` gathers in one private folder. A process removes a name only if it has
it mapped, or had it written down while it ran. So whoever shares memory with an engine (a KV
pool) must choose names of another form.

Knows nothing of vLLM and Ray. Without /proc (macOS) processes still end; only names may be left.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import re
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, Self

from aibrix_ray.runtime_dir import runtime_dir, start_time

#: The folder of the engine that this process belongs to; its children inherit the variable.
FOLDER_VARIABLE = "AIBRIX_RAY_ENGINE_FOLDER"
#: Ray tells its workers the raylet's pid.
RAYLET_VARIABLE = "RAY_RAYLET_PID"

_SHM = Path("/dev/shm")
_PROC = Path("/proc")
_POLL_S = 1.0

#: Names in /dev/shm that Python's multiprocessing and vLLM choose.
_OURS = re.compile(r"psm_[0-9a-f]+|sem\.mp-[a-z0-9_]+|vllm_(?:offload|ec)_[\w.-]+\.mmap")
#: A line of /proc/PID/maps: device and inode of something in /dev/shm. Not its name: that of a
#: semaphore is a hard link, and its maker sees the first name, which is deleted.
_MAPPED = re.compile(r"^\S+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) (\d+) +/dev/shm/", re.MULTILINE)

#: vLLM tells a CPU worker here how the file is named by which its ranks meet.
_RENDEZVOUS_VARIABLE = "VLLM_DIST_IDENT"
_RENDEZVOUS = re.compile(r"vllm_dist_[0-9a-f]{32}")
_RENDEZVOUS_GLOB = "vllm_dist_*"

_OWNED: set[str] = set()


def die_with_parent() -> None:
    """End this process as soon as the process that started it is gone. Does not block.

    Does nothing outside of a child that `multiprocessing` started, so that it may be loaded
    anywhere. Prefer it to PR_SET_PDEATHSIG, which fires when the *thread* that forked ends.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    threading.Thread(
        target=_outlive_no_parent, args=(parent.sentinel, parent.pid), daemon=True, name="guard"
    ).start()


def _outlive_no_parent(sentinel: int, pid: int) -> None:
    # A fork server stands between parent and child: then only the sentinel tells.
    direct = os.getppid() == pid
    while not multiprocessing.connection.wait([sentinel], timeout=_POLL_S):
        _note_rendezvous()
        if direct and os.getppid() != pid:  # somebody else holds the other end of the sentinel
            break
    # A dying parent closes its files a moment before its children see it gone; a parent that lives
    # on may have closed the sentinel with its Process object.
    pause_s = 0.002
    while direct and os.getppid() == pid:
        time.sleep(pause_s)
        pause_s = min(_POLL_S, pause_s * 1.2)
    _end()


def exit_with_raylet(pid: int | None = None) -> None:
    """End this process, its descendants and its names once the raylet is gone. Does not block.

    Args:
        pid: whom to watch; by default the raylet that Ray names, else this process's parent.
    """
    watched = pid or int(os.environ.get(RAYLET_VARIABLE) or os.getppid())
    threading.Thread(target=_outlive_no_raylet, args=(watched,), daemon=True, name="guard").start()


def remove_at_end(path: str) -> None:
    """Have `exit_with_raylet` remove a file (a socket) or a folder of this process."""
    _OWNED.add(path)


def _outlive_no_raylet(pid: int) -> None:
    _wait_for_exit(pid)
    _end()


def _end() -> NoReturn:
    """End this process and all below it, and remove what they would leave behind."""
    folder = EngineFolder(Path(os.environ.get(FOLDER_VARIABLE) or "/nonexistent"))
    # First what is written down, in a millisecond: Ray ends the process group of a dead worker by
    # SIGKILL after 0.2 s, and we may have little of the processor.
    _unlink_names(folder.names())
    children = descendants(os.getpid())
    names = {name for each in (os.getpid(), *children) for name in mapped_names(each)}
    # They have guards too, but a worker that has begun to tear itself down takes seconds.
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    _unlink_names(names)
    for path in sorted(_OWNED):
        _remove(path)
    folder.remove()
    os._exit(1)


def _note_rendezvous() -> None:
    """Have the file by which a worker's ranks met removed with the engine's folder."""
    name, folder = os.environ.get(_RENDEZVOUS_VARIABLE, ""), os.environ.get(FOLDER_VARIABLE)
    if folder and _RENDEZVOUS.fullmatch(name):
        link = Path(folder) / name
        if not link.is_symlink():
            with contextlib.suppress(OSError):
                link.symlink_to(Path(tempfile.gettempdir()) / name)


def _wait_for_exit(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # not Linux, or not allowed in this container
        while _is_alive(pid):
            time.sleep(_POLL_S)
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) != "Z"


def descendants(pid: int) -> list[int]:
    """Return the living processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if len(fields) > 1 and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    if not children:  # no /proc: what this process started itself ends the rest by its own guards
        return [child.pid for child in multiprocessing.active_children() if child.pid]
    found = list(children.get(pid, ()))
    for child in found:  # grows while it is read
        found.extend(children.get(child, ()))
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; [] where there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()  # the command's name may hold spaces


def _state(pid: int) -> str:
    return (_stat(pid) or [""])[0]


def mapped_inodes(maps: str) -> set[tuple[int, int]]:
    """Return device and inode of what is mapped from /dev/shm, by the text of a `maps` file."""
    return {
        (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        for major, minor, inode in _MAPPED.findall(maps)
    }


def mapped_names(pid: int) -> set[str]:
    """Return the names in /dev/shm of what a process has mapped, of the forms that are ours."""
    try:
        inodes = mapped_inodes((_PROC / str(pid) / "maps").read_text(errors="replace"))
    except OSError:
        return set()
    found = set()
    for entry in os.scandir(_SHM) if inodes else ():
        with contextlib.suppress(FileNotFoundError):
            info = entry.stat()
            if _OURS.fullmatch(entry.name) and (info.st_dev, info.st_ino) in inodes:
                found.add(entry.name)
    return found


def _unlink_names(names: Iterable[str]) -> None:
    for name in names:
        if _OURS.fullmatch(name):
            with contextlib.suppress(OSError):
                (_SHM / name).unlink()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
        return
    shutil.rmtree(path, ignore_errors=True)


class EngineFolder:
    """A private folder of one engine: its sockets, who owns it, and its names in /dev/shm.

    `sweep` removes what such folders of dead owners still list, so that even a SIGKILL of a whole
    process tree leaves nothing for longer than until the next start on the machine.
    """

    _PREFIX = "engine-"
    #: A socket's path holds 107 bytes; below the base stand `/engine-12345678/` and a UUID.
    _LONGEST_BASE = 107 - 17 - 36

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, base: Path | None = None) -> Self:
        """Make the folder, 0700, owned by this process."""
        folder = cls(Path(tempfile.mkdtemp(prefix=cls._PREFIX, dir=base or cls._base())))
        (folder.path / "owner").write_text(_identity(os.getpid()))
        return folder

    def note_names(self) -> None:
        """Write down what this process's descendants have mapped: now the names are known."""
        names = {name for child in descendants(os.getpid()) for name in mapped_names(child)}
        (self.path / "names").write_text("\n".join(sorted(names)))

    def names(self) -> list[str]:
        """Return the names that were written down."""
        try:
            return (self.path / "names").read_text().split()
        except OSError:
            return []

    def remove(self) -> None:
        """Remove the folder and the names that it lists. May be called twice."""
        _unlink_names(self.names())
        for link in self.path.glob(_RENDEZVOUS_GLOB):
            with contextlib.suppress(OSError):
                link.readlink().unlink()
        shutil.rmtree(self.path, ignore_errors=True)

    @classmethod
    def sweep(cls, base: Path | None = None) -> list[Path]:
        """Remove the folders under `base` whose owners are dead, and return their paths."""
        swept = []
        for path in sorted((base or cls._base()).glob(cls._PREFIX + "*")):
            if _owner_is_dead(path):
                cls(path).remove()
                swept.append(path)
        return swept

    @classmethod
    def _base(cls) -> Path:
        base = runtime_dir()
        return base if len(os.fsencode(base)) <= cls._LONGEST_BASE else Path("/tmp")


def _identity(pid: int) -> str:
    """Return what tells a process from a later one, or another container's, with its pid."""
    try:
        namespace = os.readlink(_PROC / str(pid) / "ns" / "pid")
    except OSError:
        namespace = "none"
    return f"{pid} {start_time(pid)} {namespace}"


def _owner_is_dead(path: Path) -> bool:
    try:
        pid, started, namespace = (path / "owner").read_text().split()
    except (OSError, ValueError):
        return False  # being made just now, or another user's
    if namespace != _identity(os.getpid()).split()[2]:
        return False  # of another container, whose processes we cannot see
    return start_time(int(pid)) != started or _state(int(pid)) == "Z"
