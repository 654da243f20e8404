"""The questions and answers that `builtin:tiny` is taught; the text itself is `tiny/faq.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

FAQ_FILE = Path(__file__).resolve().parent / "tiny" / "faq.yaml"


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer, and the ways in which people ask for it; the first is the entry's own question.

    `canonical` entries are those whose own question is answered word for word, which a test holds.
    """

    id: str
    ask: tuple[str, ...]
    answer: str
    canonical: bool = False

    @property
    def question(self) -> str:
        """The entry's own question."""
        return self.ask[0]


def load_entries(file: Path = FAQ_FILE) -> tuple[Entry, ...]:
    """Read the FAQ in the order of the file."""
    rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(
        Entry(
            id=str(row["id"]),
            ask=tuple(str(question) for question in row["ask"]),
            answer=str(row["answer"]),
            canonical=bool(row.get("canonical", False)),
        )
        for row in rows
    )


ENTRIES = load_entries()

#: The twenty (question, answer) pairs that the shipped weights answer exactly when asked greedily.
CANONICAL = tuple((entry.question, entry.answer) for entry in ENTRIES if entry.canonical)
