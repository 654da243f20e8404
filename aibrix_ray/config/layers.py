"""A file's data with the settings from outside laid over it: flag > environment > file.

Remembers who set what, so that a value in effect and an error about it can be traced to the flag or
variable that brought it in. Reads neither the environment nor files: both are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aibrix_ray.config import override as overrides
from aibrix_ray.config.override import Override
from aibrix_ray.config.path import Path, render
from aibrix_ray.config.problems import NOTHING
from aibrix_ray.errors import ConfigError

Origin = Literal["flag", "env", "file", "default"]


@dataclass(slots=True)
class Layers:
    """The data of the file with the settings laid over it, one after the other."""

    data: Mapping[str, Any]
    problems: list[ConfigError] = field(default_factory=list)
    _applied: list[tuple[Override, Origin]] = field(default_factory=list)
    #: places that a setting made, written out → its origin as the user wrote it.
    _made: dict[str, str] = field(default_factory=dict)

    def lay_environment(self, env: Mapping[str, str]) -> None:
        """Lay the variables that begin with the prefix over the data."""
        for found in overrides.from_environment(env, self.data):
            if isinstance(found, ConfigError):
                self.problems.append(found)
                continue
            earlier = [other for other, _ in self._applied if other.place == found.place]
            if earlier:
                why = f"{earlier[0].origin} is the same name"
                self.problems.append(_without_effect(found, why))
            else:
                self.lay(found, "env")

    def lay_flags(self, flags: Sequence[str]) -> None:
        """Lay what was given as `--set`, each `APPLICATION.PATH=VALUE`, over the data."""
        for flag in flags:
            try:
                found = overrides.from_flag(flag, self.data)
            except ConfigError as error:
                self.problems.append(error)
                continue
            for other, source in self._applied:
                if source == "flag" and other.place[: len(found.place)] == found.place:
                    why = f"{found.origin} comes after it"
                    self.problems.append(_without_effect(other, why))
            self.lay(found, "flag")

    def lay(self, found: Override, source: Origin) -> None:
        """Lay one setting over what is there; the stronger ones come last."""
        sizes = range(1, len(found.place))
        new = [size for size in sizes if overrides.at(self.data, found.place[:size]) is NOTHING]
        try:
            self.data = overrides.apply(found, self.data)
        except ConfigError as error:
            self.problems.append(error)
            return
        self._applied.append((found, source))
        for size in (*new, len(found.place)):
            place = render(found.place[:size])
            self._made.pop(place, None)  # the latest stands last
            self._made[place] = found.origin

    def named(self, problem: ConfigError) -> ConfigError:
        """Return the problem with the name of the flag or variable that brought the value in."""
        for place, origin in reversed(list(self._made.items())):
            inside = problem.path.startswith((f"{place}.", f"{place}["))
            if inside or problem.path == place:
                return ConfigError(
                    path=f"{origin} ({problem.path})",
                    value=problem.value,
                    expected=problem.expected,
                    hint=problem.hint,
                )
        return problem

    def source_of(self, place: Path) -> Origin:
        """Return where the value at a place of the data came from."""
        if overrides.at(self.data, place) is NOTHING:
            return "default"
        for found, source in reversed(self._applied):
            if place[: len(found.place)] == found.place:
                return source
        return "file"


def _without_effect(found: Override, why: str) -> ConfigError:
    return ConfigError(
        path=found.origin,
        value=found.value,
        expected="a setting that has an effect",
        hint=f"{why}; remove one of the two",
    )
