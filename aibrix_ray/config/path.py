"""Dotted paths: how errors and `--set` name a value of the file.

A path is a tuple of keys and list positions; written it is `applications[1].args.replicas.max`. A
key that is no plain word is written in brackets and quotes: `models["llama-3.1"].timeout_s`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

Path = tuple[str | int, ...]

_WORD = re.compile(r"[A-Za-z0-9_-]+")
_STEP = re.compile(r"""\.?(?P<word>[^.\[\]="]+) | \[(?P<quoted>"(?:[^"\\]|\\.)*")\]""", re.X)


def render(path: Sequence[object]) -> str:
    """Return the written form of a path."""
    text = ""
    for part in path:
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{part}]"
        elif isinstance(part, str) and _WORD.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, default=str)}]"
    return text


def read(text: str) -> tuple[tuple[str, ...], str]:
    """Read a path at the beginning of `text`; return its keys and what follows them.

    List positions are not read: a list is always set as a whole.
    """
    keys: list[str] = []
    position = 0
    while match := _STEP.match(text, position):
        quoted = match["quoted"]
        keys.append(json.loads(quoted) if quoted is not None else match["word"])
        position = match.end()
    return tuple(keys), text[position:]
