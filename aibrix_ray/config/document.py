"""YAML or JSON text → plain data, with errors that name the line. Knows nothing of what it means.

Stricter than PyYAML: a key that is given twice in a mapping is refused (PyYAML keeps the last one
in silence), and so is a value that contains itself. Otherwise it is the reader that Serve uses, so
what is checked here is what Serve reads.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import yaml

from aibrix_ray.config.path import Path, render
from aibrix_ray.config.problems import NOTHING
from aibrix_ray.errors import ConfigError

_SIZE_MAX = 100_000


def load(text: str) -> Any:
    """Return the data of one YAML document; None if the text holds none.

    Raises:
        ConfigError: the text is no YAML, a key is given twice, or a value contains itself.
    """
    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow at all
        raise ConfigError(
            path="the text", value=NOTHING, expected="valid YAML", hint=_one_line(str(error))
        ) from error
    except ValueError as error:  # a date such as 2026-13-45, a number such as 0x_
        raise ConfigError(
            path="the text",
            value=NOTHING,
            expected="values that YAML can read",
            hint=f"put the value in quotes ({_one_line(str(error))})",
        ) from error
    except RecursionError as error:
        raise ConfigError(
            path="the text", value=NOTHING, expected="less nesting", hint="it is too deep to read"
        ) from error


def load_json(text: str) -> Any:
    """Return the data of a JSON text; a YAML reader stumbles over its tabs, escapes and `1e3`.

    Raises:
        ConfigError: the text is no JSON, or a key is given twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        found = lines[error.lineno - 1] if error.lineno <= len(lines) else NOTHING
        raise ConfigError(
            path=f"line {error.lineno}, column {error.colno}",
            value=found,
            expected="valid JSON",
            hint=error.msg[:1].lower() + error.msg[1:],
        ) from error
    except RecursionError as error:
        raise ConfigError(
            path="the text", value=NOTHING, expected="less nesting", hint="it is too deep to read"
        ) from error


def load_value(text: str) -> Any:
    """Return the value of a flag or an environment variable; an empty text is an empty text.

    Raises:
        ConfigError: as `load`.
    """
    return load(text) if text else ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(
                path=render((key,)),
                value=value,
                expected="each key of a mapping once",
                hint="remove one of the two",
            )
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ConfigError(path="the text", value=name, expected="JSON, which has no such number")


def _load(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        size = _check(node, (), sizes={})
        if size > _SIZE_MAX:
            raise ConfigError(
                path="the text",
                value=size,
                expected=f"at most {_SIZE_MAX} values, aliases written out",
                hint="some anchor is repeated too often",
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check(node: yaml.Node, path: Path, *, sizes: dict[int, int]) -> int:
    """Refuse repeated keys and cycles; return how many values the node is, aliases written out.

    Each node is visited once, however often it is aliased; `sizes` holds those that were, and 0 for
    those that the walk is inside of.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise ConfigError(
            path=render(path), value=NOTHING, expected="a value that does not contain itself"
        )
    if known is not None:
        return known
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            size += _check(item, (*path, index), sizes=sizes)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
        for key, value in node.value:
            size += _check(value, (*path, _key(key)), sizes=sizes)
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(
                path=f"line {line}", value=NOTHING, expected="a text as key", hint="quote the key"
            )
        name = f"{key.tag} {key.value}"
        if name in first:
            shown = value.value if isinstance(value, yaml.ScalarNode) else "the second one"
            raise ConfigError(
                path=render((*path, key.value)),
                value=shown,
                expected=f"each key once, but line {line} repeats line {first[name]}",
                hint="remove one of the two",
            )
        first[name] = line


def _key(node: yaml.Node) -> str:
    return str(node.value)


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    problem = _one_line(f"{error.context or ''} {error.problem or ''}")
    if mark is None:
        return ConfigError(path="the text", value=NOTHING, expected="valid YAML", hint=problem)
    lines = text.splitlines()
    found = lines[mark.line] if mark.line < len(lines) else NOTHING
    return ConfigError(
        path=f"line {mark.line + 1}, column {mark.column + 1}",
        value=found,
        expected="valid YAML",
        hint=f"{problem}; indent with spaces" if "\\t" in problem else problem,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
