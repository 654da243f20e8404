"""Numbers in memory that another process can read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.dataplane.cells import CHUNK_BYTES, Cells, Key, Record, clip, read

keys = st.builds(
    Key, st.text(max_size=20), st.lists(st.text().map(clip), max_size=3).map(tuple), st.booleans()
)


class Memory:
    """Chunks as a file would hold them."""

    def __init__(self) -> None:
        self.chunks: list[bytearray] = []

    def more(self) -> memoryview:
        self.chunks.append(bytearray(CHUNK_BYTES))
        return memoryview(self.chunks[-1])

    def data(self) -> bytes:
        return b"".join(self.chunks)


@given(st.dictionaries(keys, st.lists(st.floats(allow_nan=False), min_size=1, max_size=20)))
def test_what_is_written_is_read(series: dict[Key, list[float]]) -> None:
    memory = Memory()
    cells = Cells(memory.more)
    for key, values in series.items():
        found = cells.get(key, len(values))
        for index, value in enumerate(values):
            found[index] = value
    expected = [Record(key, values) for key, values in series.items()]
    assert list(read(memory.data())) == expected == list(cells.records())


def test_a_key_gives_the_same_numbers_again() -> None:
    cells = Cells()
    cells.get(Key("a"))[0] += 2.0
    cells.get(Key("b"))[0] += 1.0
    cells.get(Key("a"))[0] += 1.0
    assert [(r.key.metric, r.values) for r in cells.records()] == [("a", [3.0]), ("b", [1.0])]


def test_more_memory_is_taken_when_a_chunk_is_full() -> None:
    memory = Memory()
    cells = Cells(memory.more)
    for number in range(2000):
        cells.get(Key("metric", (str(number),)), 16)[3] = number
    assert len(memory.chunks) > 2
    assert [record.values[3] for record in read(memory.data())] == list(range(2000))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * CHUNK_BYTES,
        b"\xff" * CHUNK_BYTES,
        b"\xff" * 8 + b"aibrix_1" + b"\xff" * (CHUNK_BYTES - 16),
        (100).to_bytes(8, "little") + b"aibrix_1" + b"\x01" * (CHUNK_BYTES - 16),
        (100).to_bytes(8, "little") + b"aibrix_2" + b"\x01" * (CHUNK_BYTES - 16),
    ],
    ids=["empty", "new", "noise", "too long", "no record", "another layout"],
)
def test_what_cannot_be_read_is_left_out(data: bytes) -> None:
    assert list(read(data)) == []


@given(st.binary(max_size=300))
def test_no_content_is_too_strange(content: bytes) -> None:
    size = min(len(content) + 16, CHUNK_BYTES)
    head = size.to_bytes(8, "little") + b"aibrix_1"
    list(read((head + content).ljust(CHUNK_BYTES, b"\0")))


def test_a_file_that_ends_early_is_read_as_far_as_it_goes() -> None:
    memory = Memory()
    Cells(memory.more).get(Key("a"))[0] = 1.0
    assert len(list(read(memory.data() + b"\0" * 100))) == 1
    assert list(read(memory.data()[:-1])) == []
