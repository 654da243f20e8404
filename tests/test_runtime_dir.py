from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aibrix_ray.errors import ConfigError
from aibrix_ray.runtime_dir import (
    ENVIRONMENT,
    remove_stale,
    runtime_dir,
    socket_path,
    start_time,
)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the runtime folder is to be; short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="ab-", dir="/tmp") as parent:
        monkeypatch.setenv(ENVIRONMENT, f"{parent}/run")
        yield Path(parent, "run")


def test_it_is_made_for_this_user_alone(folder: Path) -> None:
    assert runtime_dir() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert runtime_dir() == folder


def test_without_a_wish_it_is_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert runtime_dir() == Path(f"/tmp/aibrix_ray-{os.getuid()}")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_one_that_others_may_enter_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError) as refused:
        runtime_dir()
    assert refused.value.path == ENVIRONMENT
    assert "mode 0700" in refused.value.expected
    assert ENVIRONMENT in refused.value.hint


def test_a_link_that_somebody_put_there_is_refused(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    folder.symlink_to(target)
    with pytest.raises(ConfigError, match="mode 0700"):
        runtime_dir()


def test_a_file_in_its_place_is_refused(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(ConfigError):
        runtime_dir()


def test_a_path_too_long_for_a_socket_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("x" * 100)
    monkeypatch.setenv(ENVIRONMENT, str(path))
    with pytest.raises(ConfigError, match="68 bytes"):
        runtime_dir()


def test_a_socket_is_named_after_its_process(folder: Path) -> None:
    path = Path(socket_path("engine-0"))
    assert path.parent == folder
    assert path.name == f"engine-0.{os.getpid()}.{start_time(os.getpid())}.sock"
    assert len(os.fsencode(path)) < 108


def test_a_process_is_known_by_when_it_started() -> None:
    assert start_time(os.getpid()) == start_time(os.getpid()) != "0"
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        alive = start_time(child.pid)
        child.communicate(b"\n")
    assert alive.isdigit()
    assert int(alive) >= int(start_time(os.getpid()))
    assert start_time(child.pid) != alive


def test_what_the_dead_left_is_removed_and_nothing_else(folder: Path) -> None:
    runtime_dir()
    me, started = os.getpid(), start_time(os.getpid())
    kept = [
        f"engine.{me}.{started}.sock",
        f"port-8000.{me}.{started}.claim",
        f"a.name.with.dots.{me}.{started}.sock",
        "README",
        "a.b",
        f"engine.{me}.sock",
        "engine.not-a-pid.1.sock",
    ]
    removed = [
        f"engine.{me}.1.sock",  # the pid is used again
        "engine.4194304.77.sock",
        "port-8000.4194304.77.claim",
        f"a.name.with.dots.{me}.1.sock",
    ]
    for name in kept + removed:
        (folder / name).touch()
    remove_stale()
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)
    remove_stale()
