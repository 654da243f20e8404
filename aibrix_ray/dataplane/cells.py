"""Numbers in plain memory that another process can read: where a gateway's figures live.

A series (a metric with its label values) is a record: its key as JSON, then its numbers as doubles.
Counting is an addition at an index, without a lock and without a system call; if the memory is a
shared file, siblings read it at any time, even after this process was killed. Records are appended
and never move. One process writes, on one thread; a reader may see a number one addition old,
never half of one (each is eight aligned bytes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

#: Memory is taken in pieces of this size, each with a header of its own.
CHUNK_BYTES = 64 * 1024

#: Of another layout nothing is read: gateways of two versions may share a node for a while.
_MAGIC = b"aibrix_1"
_HEADER = struct.Struct("=Q8s")  # bytes used, header included; magic
_RECORD = struct.Struct("=II")  # bytes of the key with its padding, how many numbers
_MAX_LABEL = 200


class Key(msgspec.Struct, frozen=True, array_like=True):
    """Which series a record is; `gauge` says that it means nothing once its process has died."""

    metric: str
    labels: tuple[str, ...] = ()
    gauge: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A series as it was read."""

    key: Key
    values: list[float]


_DECODER = msgspec.json.Decoder(Key)


class Cells:
    """Appends records to memory that `more` gives, and finds them again by their keys."""

    def __init__(self, more: Callable[[], memoryview] | None = None) -> None:
        self._more = more or _private
        self._chunks: list[memoryview] = []
        self._used = CHUNK_BYTES
        self._known: dict[Key, memoryview[float]] = {}

    def get(self, key: Key, count: int = 1) -> memoryview[float]:
        """Return the numbers of a series, all zero if it is new."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._append(key, count)
        return found

    def records(self) -> Iterator[Record]:
        """Yield what `read` would find in this memory."""
        for key, values in self._known.items():
            yield Record(key, list(values))

    def _append(self, key: Key, count: int) -> memoryview[float]:
        name = msgspec.json.encode(key)
        name += b" " * (-len(name) % 8)
        start = self._room(_RECORD.size + len(name) + 8 * count)
        chunk = self._chunks[-1]
        _RECORD.pack_into(chunk, start, len(name), count)
        first = start + _RECORD.size + len(name)
        chunk[start + _RECORD.size : first] = name
        self._used = first + 8 * count
        _HEADER.pack_into(chunk, 0, self._used, _MAGIC)  # last: now it is there for readers
        return chunk[first : self._used].cast("d")

    def _room(self, size: int) -> int:
        assert size <= CHUNK_BYTES - _HEADER.size, "a series does not fit into a chunk"
        if self._used + size > CHUNK_BYTES:
            self._chunks.append(self._more())
            self._used = _HEADER.size
        return self._used


def clip(label: str) -> str:
    """Return a label's value, cut where it is too long for a record."""
    return label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…"


def read(data: bytes) -> Iterator[Record]:
    """Yield the records of a file of chunks; what cannot be read is left out."""
    for offset in range(0, len(data) - CHUNK_BYTES + 1, CHUNK_BYTES):
        used, magic = _HEADER.unpack_from(data, offset)
        if magic != _MAGIC or used > CHUNK_BYTES:
            continue
        at, end = offset + _HEADER.size, offset + used
        while at + _RECORD.size <= end:
            size, count = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            if at + size + 8 * count > end:
                break
            try:
                key = _DECODER.decode(data[at : at + size])
            except msgspec.MsgspecError:
                break
            at += size
            yield Record(key, list(struct.unpack_from(f"={count}d", data, at)))
            at += 8 * count


def _private() -> memoryview:
    return memoryview(bytearray(CHUNK_BYTES))
