"""Our own command line, as the benchmarks start it: `aibrix-ray` of this environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def our_command() -> Path:
    """Return where our command is in this environment, if it is."""
    return Path(sys.executable).with_name("aibrix-ray")


def why_not_ours(subcommand: str) -> str | None:
    """Return why our command cannot be run with `subcommand` here, or None."""
    if not our_command().exists():
        return "the command aibrix-ray is not in this environment: pip install -e ."
    asked = [str(our_command()), subcommand, "--help"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        return f"this aibrix-ray has no command {subcommand!r}"
    return None
