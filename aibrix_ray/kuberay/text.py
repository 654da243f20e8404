"""Plain data → YAML that reads the same in Python and in Go.

KubeRay reads `serveConfigV2` with a Go library whose idea of a plain scalar differs from PyYAML's:
`1e3`, `0o17` and `y` are texts here and a number, a number and a boolean there. So every text that
is no plain word is quoted. Key order is the data's; nothing is wrapped, sorted or dated.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})


class _Dumper(yaml.SafeDumper):
    """Quotes texts for both readers; a text of several lines becomes a literal block."""

    def ignore_aliases(self, data: object) -> bool:
        """Write a value again where it occurs again: anchors would hide what is in effect."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        """Indent the items of a list, as the examples of this package do."""
        return super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    plain = _PLAIN_TEXT.fullmatch(text) and text.lower() not in _NOT_TEXT
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def to_yaml(data: object) -> str:
    """Return the YAML text of plain data; equal data give equal bytes."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text
