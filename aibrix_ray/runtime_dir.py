"""The folder of this user's sockets and claims on this node.

Its mode is 0700, so a Unix socket in it needs no password. Entries are named so that a later
process can tell whether their owner still lives; none outlives its process for longer than until
the next start.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from aibrix_ray.errors import ConfigError

ENVIRONMENT = "AIBRIX_RAY_RUNTIME_DIR"
#: The kernel's limit for the path of a Unix socket is 108 bytes.
_MAX_PATH_BYTES = 100


def runtime_dir() -> Path:
    """Return the folder, made if it is not there.

    Raises:
        ConfigError: somebody else owns it, others may enter it, or its path is too long for
            a Unix socket.
    """
    chosen = os.environ.get(ENVIRONMENT)
    path = Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"aibrix_ray-{os.getuid()}"
    with contextlib.suppress(FileExistsError):  # a file stands there: refused below
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise ConfigError(
            path=ENVIRONMENT,
            value=str(path),
            expected="a directory of this user with mode 0700",
            hint=f"set {ENVIRONMENT} to a directory of your own",
        )
    if len(os.fsencode(path)) > _MAX_PATH_BYTES - 32:
        raise ConfigError(
            path=ENVIRONMENT, value=str(path), expected="a path of at most 68 bytes", hint=""
        )
    return path


def socket_path(name: str) -> str:
    """Return where the Unix socket of this process goes: `NAME.PID.START.sock`."""
    return str(runtime_dir() / f"{name}.{os.getpid()}.{start_time(os.getpid())}.sock")


def remove_stale() -> None:
    """Remove the entries of processes that have died."""
    for entry in runtime_dir().iterdir():
        parts = entry.name.split(".")
        if len(parts) < 4 or not parts[-3].isdigit():
            continue
        pid = int(parts[-3])
        if start_time(pid) != parts[-2]:
            with contextlib.suppress(FileNotFoundError):
                entry.unlink()


def start_time(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; "0" if it is not there.

    A pid alone is not an identity: it is used again.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "0" if not _alive_without_proc(pid) else "1"
    return text.rpartition(")")[2].split()[19]


def _alive_without_proc(pid: int) -> bool:
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)  # macOS
    except OSError:
        return False
    return True
