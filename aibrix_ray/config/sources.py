"""The effective configuration: flag > environment > file > default, and where each value came from.

Reads neither the environment nor files: both are handed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from aibrix_ray.config import override as overrides
from aibrix_ray.config.file import ParsedFile, ServeFile
from aibrix_ray.config.layers import Layers, Origin
from aibrix_ray.config.part import Part
from aibrix_ray.config.path import Path, render
from aibrix_ray.errors import ConfigError

#: the sentence for every --help.
PRECEDENCE = "Precedence: flag > environment (AIBRIX_RAY__APPLICATION__PATH) > file > default."


class Sourced(NamedTuple):
    """A value in effect and where it came from."""

    value: object
    source: Origin


Sources = dict[str, Sourced]


def effective(
    text: str, env: Mapping[str, str], flags: Sequence[str]
) -> tuple[ParsedFile, Sources]:
    """Return the file with environment and flags in it, and the source of each value.

    Args:
        text: the YAML text of the file.
        env: environment variables; only `AIBRIX_RAY__…` are looked at.
        flags: what was given as `--set`, each `APPLICATION.PATH=VALUE`.

    Raises:
        ConfigError: the first problem; `check` returns them all.
    """
    found, problems = check(text, env, flags)
    if found is None:
        raise problems[0]
    return found


def check(
    text: str, env: Mapping[str, str], flags: Sequence[str]
) -> tuple[tuple[ParsedFile, Sources] | None, tuple[ConfigError, ...]]:
    """Return what `effective` does, or None and every problem."""
    try:
        file = ServeFile.read(text)
    except ConfigError as error:
        return None, (error,)
    assert isinstance(file.data, Mapping), "read() lets only mappings through"
    layers = Layers(file.data)
    layers.lay_environment(env)
    layers.lay_flags(flags)
    parsed, problems = ServeFile(layers.data).check()
    problems = (*layers.problems, *map(layers.named, problems))
    if problems or parsed is None:
        return None, problems
    return (parsed, dict(_sources(parsed, layers))), ()


def _sources(parsed: ParsedFile, layers: Layers) -> Iterator[tuple[str, Sourced]]:
    parts: list[tuple[str, Path, Part]] = []
    if parsed.gateway_name is not None and parsed.gateway is not None:
        parts.append((parsed.gateway_name, (), parsed.gateway))
        parts.append((parsed.gateway_name, ("user_config",), parsed.user_config))
    parts += [(name, (), group) for name, group in parsed.groups.items()]
    for application, base, part in parts:
        for keys, value in _leaves(part, base):
            place = overrides.place_of(layers.data, application, keys)
            yield render((application, *keys)), Sourced(value, layers.source_of(place))


def _leaves(value: object, keys: Path) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every value that has no parts of its own; an empty mapping is such a value."""
    if isinstance(value, Part):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*keys, name))
    elif isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*keys, str(key)))
    else:
        names = tuple(str(key) for key in keys)
        yield names, list(value) if isinstance(value, tuple) else value
