"""The kept result of the gateway benchmark: read back, so that one part can be measured alone.

A run of one part replaces that part; the other one stays as it is, under the date when it was
measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, Part

_CELL_FIELDS = frozenset(field.name for field in fields(Cell))


@dataclass(frozen=True, slots=True)
class KeptPart:
    """The cells of one part, when they were measured, and with what settings."""

    cells: tuple[Cell, ...]
    date: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_part(path: Path, part: Part) -> KeptPart | None:
    """Return a part of the kept result; None where there is none."""
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    cells = tuple(_cell(raw) for raw in result["cells"] if raw["part"] == part)
    if not cells:
        return None
    date = result.get("dates", {}).get(part, result["date"])
    return KeptPart(cells, date, result["settings"].get(part, {}))


def _cell(raw: Mapping[str, Any]) -> Cell:
    known = {name: value for name, value in raw.items() if name in _CELL_FIELDS}
    return Cell(**{**known, "rounds_per_s": tuple(raw["rounds_per_s"])})
