"""The gateways of a node as one: each one's figures in a shared file, read by whoever is scraped.

All gateways of an application share a port, so a scrape reaches one of them by chance, and it
answers for all. Each keeps its figures in a memory-mapped file (`dataplane/cells`) and holds a lock
on that for as long as it lives.

What happens when a gateway dies, however it dies: the kernel drops its lock and keeps its file, so
nothing that it counted is lost. The next scrape leaves its gauges out and folds its counters into
the file of what is retained. What is retained ends with the last gateway: the first one that comes
to an empty port begins at zero, as a process that restarts does.

Every number in these files only grows and folding moves it without a moment in which it is in none
or in two of them for a reader, so of two scrapes, the later never says less.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import stat
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from aibrix_ray.dataplane.cells import CHUNK_BYTES, Cells, Key, Record, read
from aibrix_ray.runtime_dir import runtime_dir

logger = logging.getLogger(__name__)

_SUFFIX = ".gateway"
_RETAINED = "retained.json"
_LOCK = "lock"
#: Memory and not a disk: a write to a mapped page of a disk's file may wait for the disk.
_SHARED_MEMORY = Path("/dev/shm")
#: Names of folded files are remembered, for readers that opened one before it was folded.
_REMEMBERED = 256
_TRIES = 100


class _Retained(msgspec.Struct):
    """What dead gateways had counted, and which ones are in it."""

    folded: list[str] = []
    series: list[tuple[Key, list[float]]] = []

    def add(self, name: str, records: Sequence[Record]) -> None:
        """Take a dead gateway's counters in."""
        sums = dict(self.series)
        for record in records:
            if not record.key.gauge:
                old = sums.get(record.key)
                if old is None or len(old) != len(record.values):
                    sums[record.key] = record.values
                else:
                    sums[record.key] = [a + b for a, b in zip(old, record.values, strict=True)]
        self.series = list(sums.items())
        self.folded = [*self.folded[1 - _REMEMBERED :], name]


@dataclass(frozen=True, slots=True)
class Figures:
    """One gateway's figures as a scrape found them. Of one that is not alive, only counters."""

    alive: bool
    records: list[Record]


class Siblings:
    """One gateway's place among those of its node, application and port, until `leave`.

    Raises:
        OSError: the shared file cannot be made.
        ConfigError: the runtime directory is unusable.
    """

    def __init__(self, application: str, port: int) -> None:
        self._folder = _base() / f"gateways-{port}-{quote(application, safe='')[:100]}"
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}{_SUFFIX}"
        with self._locked():
            if not any(alive for _, _, alive in self._files()):
                self._clear()
            self._file = self._create()
        self._size = 0
        self.cells = Cells(self._grow)

    def figures(self) -> list[Figures]:
        """Return the figures of every gateway, dead ones' counters too; folds what it finds dead.

        Costs a few system calls a gateway; meant for a scrape, not for a request.
        """
        found = [(name, alive, list(read(data))) for name, data, alive in self._files()]
        # Read after the files were opened: one that was folded meanwhile is named in it, one that
        # is folded from here on is not in it.
        retained = self._read_retained()
        result = [Figures(True, list(self.cells.records()))]
        result += [
            Figures(alive, [r for r in records if alive or not r.key.gauge])
            for name, alive, records in found
            if name != self._name and name not in retained.folded
        ]
        result.append(Figures(False, [Record(key, values) for key, values in retained.series]))
        if not all(alive for _, alive, _ in found):
            self._try_to_fold()
        return result

    def leave(self) -> None:
        """Be dead to the siblings: they keep the counters. The last one to leave ends them."""
        with self._locked():
            fcntl.flock(self._file, fcntl.LOCK_UN)  # the mapping holds on to the open file
            os.close(self._file)
            self._file = -1
            if not any(alive for _, _, alive in self._files()):
                self._clear()
                (self._folder / _LOCK).unlink()
                self._folder.rmdir()
                with contextlib.suppress(OSError):  # other applications are there
                    self._folder.parent.rmdir()

    def _create(self) -> int:
        # Locked before it has its name: an unlocked file is a dead gateway's.
        draft = self._folder / f"{self._name}.new"
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        draft.rename(self._folder / self._name)
        return file

    def _grow(self) -> memoryview:
        """Return a further chunk of the file; private memory if there is no room for it."""
        try:
            # Touching a page that the file system has no room for would be a SIGBUS.
            _allocate(self._file, self._size, CHUNK_BYTES)
            chunk = mmap.mmap(self._file, CHUNK_BYTES, offset=self._size)
        except OSError as error:
            logger.warning("no shared memory for figures, siblings will miss some: %s", error)
            return memoryview(bytearray(CHUNK_BYTES))
        self._size += CHUNK_BYTES
        return memoryview(chunk)

    def _files(self) -> Iterator[tuple[str, bytes, bool]]:
        """Yield name, content and whether its gateway lives, of each file; ours is not read."""
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            with contextlib.suppress(FileNotFoundError):  # folded by a sibling
                file = os.open(path, os.O_RDONLY)
                try:
                    ours = path.name == self._name
                    alive = _held(file)
                    # After the lock was tried: what a dead one wrote last is in it.
                    data = b"" if ours else os.pread(file, os.fstat(file).st_size, 0)
                finally:
                    os.close(file)
                yield path.name, data, alive

    def _try_to_fold(self) -> None:
        try:
            with self._locked(wait=False):
                self._fold()
        except BlockingIOError:
            return  # a sibling is at it
        except OSError as error:
            logger.warning("figures of dead gateways stay in files of their own: %s", error)

    def _fold(self) -> None:
        """Move the counters of dead gateways into the retained ones; the lock is held."""
        retained = self._read_retained()
        dead = [(name, data) for name, data, alive in self._files() if not alive]
        for name, data in dead:
            if name not in retained.folded:
                retained.add(name, list(read(data)))
        draft = self._folder / f"{_RETAINED}.new"
        draft.write_bytes(msgspec.json.encode(retained))
        draft.replace(self._folder / _RETAINED)
        for name, _ in dead:
            (self._folder / name).unlink(missing_ok=True)

    def _read_retained(self) -> _Retained:
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            return _RETAINED_DECODER.decode((self._folder / _RETAINED).read_bytes())
        return _Retained()

    def _clear(self) -> None:
        """Remove everything but the lock, which is held."""
        for path in self._folder.iterdir():
            if path.name != _LOCK:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[None]:
        file = self._open_lock()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            while os.fstat(file).st_nlink == 0:  # the last one has left meanwhile
                os.close(file)
                file = self._open_lock()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _open_lock(self) -> int:
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # the last one leaves at this moment
                self._folder.parent.mkdir(mode=0o700, exist_ok=True)
                self._folder.mkdir(mode=0o700, exist_ok=True)
                return os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        raise FileNotFoundError(f"{self._folder} is removed again and again")


_RETAINED_DECODER = msgspec.json.Decoder(_Retained)


def _held(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _allocate(file: int, offset: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, offset, size)
    else:
        os.ftruncate(file, offset + size)  # macOS


def _base() -> Path:
    """Return a folder of this user in shared memory, one a runtime directory; else that itself."""
    runtime = runtime_dir()
    if not _SHARED_MEMORY.is_dir():
        return runtime
    mark = f"{zlib.crc32(os.fsencode(runtime)):08x}"
    path = _SHARED_MEMORY / f"aibrix_ray-{os.getuid()}-{mark}"
    with contextlib.suppress(OSError):  # no place of ours there: refused below
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
        if stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077:
            return path
    return runtime
