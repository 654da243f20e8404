"""The effective configuration: flag > environment > file > default, and where each value came from.

Reads neither the environment nor files: both are handed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from aibrix_ray.config import override as overrides
from aibrix_ray.config.file import ParsedFile, ServeFile
from aibrix_ray.config.override import Override
from aibrix_ray.config.part import Part
from aibrix_ray.config.path import Path, render
from aibrix_ray.config.problems import NOTHING
from aibrix_ray.errors import ConfigError

#: the sentence for every --help.
PRECEDENCE = "Precedence: flag > environment (AIBRIX_RAY__APPLICATION__PATH) > file > default."

Origin = Literal["flag", "env", "file", "default"]


class Sourced(NamedTuple):
    """A value in effect and where it came from."""

    value: object
    source: Origin


Sources = dict[str, Sourced]


@dataclass(slots=True)
class _Layers:
    """The data of the file with the settings laid over it, one after the other."""

    data: Mapping[str, Any]
    applied: list[tuple[Override, Origin]]
    problems: list[ConfigError]
    #: places that an override made, written out → its origin as the user wrote it.
    made: dict[str, str]


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
    layers = _Layers(file.data, applied=[], problems=[], made={})
    _lay_environment(layers, env)
    _lay_flags(layers, flags)
    parsed, problems = ServeFile(layers.data).check()
    problems = (*layers.problems, *(_named(problem, layers.made) for problem in problems))
    if problems or parsed is None:
        return None, problems
    return (parsed, dict(_sources(parsed, layers))), ()


def _lay_environment(layers: _Layers, env: Mapping[str, str]) -> None:
    for found in overrides.from_environment(env, layers.data):
        if isinstance(found, ConfigError):
            layers.problems.append(found)
            continue
        earlier = [other for other, _ in layers.applied if other.place == found.place]
        if earlier:
            layers.problems.append(_without_effect(found, f"{earlier[0].origin} is the same name"))
        else:
            _lay(layers, found, "env")


def _lay_flags(layers: _Layers, flags: Sequence[str]) -> None:
    for flag in flags:
        try:
            found = overrides.from_flag(flag, layers.data)
        except ConfigError as error:
            layers.problems.append(error)
            continue
        for other, source in layers.applied:
            if source == "flag" and other.place[: len(found.place)] == found.place:
                layers.problems.append(_without_effect(other, f"{found.origin} comes after it"))
        _lay(layers, found, "flag")


def _lay(layers: _Layers, found: Override, source: Origin) -> None:
    sizes = range(1, len(found.place))
    new = [size for size in sizes if overrides.at(layers.data, found.place[:size]) is NOTHING]
    try:
        layers.data = overrides.apply(found, layers.data)
    except ConfigError as error:
        layers.problems.append(error)
        return
    layers.applied.append((found, source))
    for size in (*new, len(found.place)):
        place = render(found.place[:size])
        layers.made.pop(place, None)  # the latest stands last
        layers.made[place] = found.origin


def _without_effect(found: Override, why: str) -> ConfigError:
    return ConfigError(
        path=found.origin,
        value=found.value,
        expected="a setting that has an effect",
        hint=f"{why}; remove one of the two",
    )


def _named(problem: ConfigError, made: Mapping[str, str]) -> ConfigError:
    """Return the problem with the name of the flag or variable that brought the value in."""
    for place, origin in reversed(list(made.items())):
        inside = problem.path.startswith((f"{place}.", f"{place}["))
        if inside or problem.path == place:
            return ConfigError(
                path=f"{origin} ({problem.path})",
                value=problem.value,
                expected=problem.expected,
                hint=problem.hint,
            )
    return problem


def _sources(parsed: ParsedFile, layers: _Layers) -> Iterator[tuple[str, Sourced]]:
    parts: list[tuple[str, Path, Part]] = []
    if parsed.gateway_name is not None and parsed.gateway is not None:
        parts.append((parsed.gateway_name, (), parsed.gateway))
        parts.append((parsed.gateway_name, ("user_config",), parsed.user_config))
    parts += [(name, (), group) for name, group in parsed.groups.items()]
    for application, base, part in parts:
        for keys, value in _leaves(part, base):
            place = overrides.place_of(layers.data, application, keys)
            yield render((application, *keys)), Sourced(value, _source(place, layers))


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


def _source(place: Path, layers: _Layers) -> Origin:
    if overrides.at(layers.data, place) is NOTHING:
        return "default"
    for found, source in reversed(layers.applied):
        if place[: len(found.place)] == found.place:
            return source
    return "file"
