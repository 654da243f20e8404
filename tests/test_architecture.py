"""Holds the package to the table of rooms in docs/architecture.md.

`| floor | room | holds |`: a room is a module or a folder at the top of the package, its name in
backticks, `(p)` after the name of a pure one; several to a cell are separated by commas. A name
with a file in it (`telemetry/store.py`) is a part of a room that is pure although the room is not.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aibrix_ray"
DOCUMENT = ROOT / "docs" / "architecture.md"

#: Rooms that may import Ray; nothing else may.
RAY_ROOMS = {"telemetry/", "engines/", "deployments/", "cli/"}
VLLM_ROOMS = {"engines/"}

#: What a pure module may not import: clocks, chance, concurrency, I/O, and the heavy foreigners.
IMPURE = frozenset(
    re.findall(
        r"\w+",
        """
        ray vllm torch transformers uvicorn uvloop httptools starlette httpx requests
        prometheus_client asyncio concurrent ctypes http io mmap multiprocessing os pathlib
        secrets select selectors shutil signal socket sqlite3 ssl subprocess sys tempfile
        threading time urllib uuid
        """,
    )
)
#: Attributes by module that a pure module may not touch, or the only ones that it may.
NEVER = {"datetime": {"now", "today", "utcnow"}, "date": {"today"}}
ONLY = {"random": {"Random"}}
BUILTINS = {"open", "print", "input", "exec", "eval", "breakpoint"}


@dataclass(frozen=True)
class Room:
    """A row's entry: a module, a folder, or (with a file in it) a part of a folder."""

    name: str
    floor: int
    pure: bool

    @property
    def part(self) -> bool:
        return "/" in self.name.rstrip("/")


def read_table(text: str) -> list[Room]:
    """Return what the table of the document lists."""
    rooms = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) >= 3 and cells[0].isdigit():
            found = re.findall(r"`([\w./]+)`\s*(\(p\))?", cells[1])
            rooms += [Room(name, int(cells[0]), bool(pure)) for name, pure in found]
    return rooms


def rooms_on_disk() -> set[str]:
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    return modules | {f"{path.parent.name}/" for path in PACKAGE.glob("*/*.py")}


ROOMS = read_table(DOCUMENT.read_text())
FLOORS = {room.name: room.floor for room in ROOMS if not room.part}
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text()
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def room_of(file: str) -> str:
    """Return the room of a file or module path relative to the package."""
    first, slash, _ = file.partition("/")
    return first + slash if slash else first


def is_pure(file: str) -> bool:
    pure = {room.name for room in ROOMS if room.pure}
    return file in pure or room_of(file) in pure


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import, wherever it stands; name is "" for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from ((node.module, alias.name) for alias in node.names)


def file_of(module: str, name: str) -> str | None:
    """Return the file of ours that an import reads; None for a foreign one and for our door."""
    parts = module.split(".")
    if parts[0] != "aibrix_ray":
        return None
    path = PACKAGE.joinpath(*parts[1:])
    if name and ((path / name).is_dir() or (path / f"{name}.py").exists()):
        path /= name
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return None if path == PACKAGE else found.relative_to(PACKAGE).as_posix()


def arrows(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (file, imported file) of every import of ours."""
    for file, source in sources.items():
        for module, name in imports(source):
            target = file_of(module, name)
            if target is not None:
                yield file, target


def impurities(source: str) -> list[str]:
    """Return what a pure module should not have, as text."""
    found = []
    modules: dict[str, str] = {}
    tree = ast.parse(source)
    for module, name in imports(source):
        top = module.split(".")[0]
        if top in IMPURE:
            found.append(f"imports {module}")
        if name and top in ONLY and name not in ONLY[top]:
            found.append(f"imports {module}.{name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in BUILTINS:
                found.append(f"calls {node.func.id}")
        elif isinstance(node, ast.Attribute):
            base = node.value
            name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
            name = modules.get(name, name)
            if node.attr in NEVER.get(name, ()) or (
                name in ONLY and name in modules.values() and node.attr not in ONLY[name]
            ):
                found.append(f"uses {name}.{node.attr}")
    return found


# The table


def test_every_room_is_in_the_table_and_the_table_lists_no_other() -> None:
    listed = [room.name for room in ROOMS if not room.part]
    assert len(listed) == len(set(listed)), "a room stands in the table twice"
    assert set(listed) == rooms_on_disk()


def test_every_part_in_the_table_is_a_file_of_a_listed_room() -> None:
    for room in ROOMS:
        if room.part:
            assert room.name in SOURCES, room.name
            assert FLOORS[room_of(room.name)] == room.floor, room.name
            assert room.pure, f"{room.name} is named only to say that it is pure"


# Arrows


def test_no_arrow_goes_upwards() -> None:
    upward = [
        f"{file} (floor {FLOORS[room_of(file)]}) imports {target} ({FLOORS[room_of(target)]})"
        for file, target in arrows(SOURCES)
        if FLOORS[room_of(target)] > FLOORS[room_of(file)]
    ]
    assert not upward, "\n".join(upward)


def test_rooms_import_each_other_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for file, target in arrows(SOURCES):
        if room_of(file) != room_of(target):
            graph.setdefault(room_of(file), set()).add(room_of(target))
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"rooms in a circle: {' → '.join(reversed(error.args[1]))}")


def test_within_the_package_its_door_gives_only_the_version() -> None:
    through_the_door = {
        (file, name)
        for file, source in SOURCES.items()
        for module, name in imports(source)
        if module == "aibrix_ray" and file_of(module, name) is None
    }
    assert {name for _, name in through_the_door} <= {"__version__"}, through_the_door


def test_the_imports_are_absolute() -> None:
    for source in SOURCES.values():
        list(imports(source))


# Purity


@pytest.mark.parametrize("file", [file for file in SOURCES if is_pure(file)])
def test_a_pure_module_is_pure(file: str) -> None:
    assert not impurities(SOURCES[file])
    impure = [target for _, target in arrows({file: SOURCES[file]}) if not is_pure(target)]
    assert not impure, f"{file} is pure and imports {impure}"


@pytest.mark.parametrize(
    ("package", "rooms"), [("ray", RAY_ROOMS), ("vllm", VLLM_ROOMS)], ids=["ray", "vllm"]
)
def test_only_their_own_rooms_import_ray_and_vllm(package: str, rooms: set[str]) -> None:
    importing = {
        room_of(file)
        for file, source in SOURCES.items()
        for module, _ in imports(source)
        if module.split(".")[0] == package
    }
    assert importing <= rooms


def test_the_door_and_the_data_plane_load_neither_ray_nor_vllm() -> None:
    code = (
        "import sys, aibrix_ray, aibrix_ray.config, aibrix_ray.pipeline, aibrix_ray.dataplane\n"
        "print(sorted({'ray', 'vllm', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# The checker itself


def test_the_table_is_read_as_it_is_written() -> None:
    text = (
        "# Architecture\n\n## Rooms\n\n| floor | room | holds |\n|---|---|---|\n"
        "| 0 | `errors.py` (p), `types.py` (p) | errors; `ReplicaView` |\n"
        "| 3 | `pipeline.py` (p), `telemetry/`, `telemetry/store.py` (p) | x |\n"
        "| model | `m` | another table |\n"
    )
    assert read_table(text) == [
        Room("errors.py", 0, True),
        Room("types.py", 0, True),
        Room("pipeline.py", 3, True),
        Room("telemetry/", 3, False),
        Room("telemetry/store.py", 3, True),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import monotonic",
        "import asyncio.subprocess as s",
        "def f():\n    import ray.serve",
        "if TYPE_CHECKING:\n    from vllm.config import X",
        "import os.path",
        "from pathlib import Path",
        "import random\nrandom.random()",
        "import random as r\nr.choice([1])",
        "from random import shuffle",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.utcnow()",
        "from datetime import date as d\nd.today()",
        "open('x')",
        "print(1)",
    ],
)
def test_what_is_impure_is_seen(source: str) -> None:
    assert impurities(source)


@pytest.mark.parametrize(
    "source",
    [
        "import random\nr = random.Random(7)\nr.random()",
        "from random import Random",
        "from datetime import datetime, timedelta\ndatetime.fromtimestamp(0)",
        "import math, json, re, heapq, difflib, importlib",
        "from collections.abc import Callable\nclock: Callable[[], float]\nnow = clock()",
        "self.open(1)",
    ],
)
def test_what_is_pure_passes(source: str) -> None:
    assert not impurities(source)


def test_an_import_is_traced_to_the_file_that_it_reads() -> None:
    assert file_of("aibrix_ray.dataplane", "wire") == "dataplane/wire.py"
    assert file_of("aibrix_ray.dataplane", "Fleet") == "dataplane/__init__.py"
    assert file_of("aibrix_ray.dataplane.fleet", "Fleet") == "dataplane/fleet.py"
    assert file_of("aibrix_ray", "registry") == "registry.py"
    assert file_of("aibrix_ray", "dataplane") == "dataplane/__init__.py"
    assert file_of("aibrix_ray.errors", "") == "errors.py"
    assert file_of("aibrix_ray", "__version__") is None
    assert file_of("ray", "serve") is None
    assert (room_of("dataplane/wire.py"), room_of("errors.py")) == ("dataplane/", "errors.py")
