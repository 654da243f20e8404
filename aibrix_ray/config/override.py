"""Settings from outside of the file: what a flag or a variable names, and how it enters the data.

A flag is `--set APPLICATION.PATH=VALUE`, where PATH goes on below the application's `args`, or
below the gateway's `user_config` if it begins with that word. A variable is
`AIBRIX_RAY__APPLICATION__PATH`: steps in upper case, dashes as underscores, two underscores between
steps. Values are YAML. Both reach only applications of `aibrix_ray`; one that reaches nothing is an
error, never silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aibrix_ray.config import document, serve_keys
from aibrix_ray.config.application import Kind, kind_of
from aibrix_ray.config.path import Path, read
from aibrix_ray.config.problems import NOTHING, did_you_mean
from aibrix_ray.errors import ConfigError

PREFIX = "AIBRIX_RAY__"

_USER_CONFIG = "user_config"


@dataclass(frozen=True, slots=True)
class Override:
    """One setting. `place` is where its value stands in the file, `keys` where in its application.

    `origin` is the flag or the variable as the user wrote it, without the value.
    """

    origin: str
    application: str
    keys: tuple[str, ...]
    place: Path
    value: object


def from_flag(text: str, data: Mapping[str, Any]) -> Override:
    """Read `APPLICATION.PATH=VALUE` as it stands after `--set`.

    Raises:
        ConfigError: it is not of this form, or the file has no such application.
    """
    keys, rest = read(text)
    origin = f"--set {text[: len(text) - len(rest)]}"
    if len(keys) < 2 or not rest.startswith("="):
        raise ConfigError(
            path="--set",
            value=text,
            expected="APPLICATION.PATH=VALUE",
            hint='such as gateway.port=9000; quote an odd key: gateway.user_config.models["a.b"]; '
            "a list is set as a whole: PATH='[a, b]'",
        )
    names = _our_applications(data)
    if keys[0] not in names:
        raise _no_application(origin, rest[1:], keys[0], names)
    inner = keys[1:] if '["' in origin else _joined(keys[1:], keys[0], data)
    return _placed(origin, keys[0], inner, rest[1:], data)


def from_environment(
    env: Mapping[str, str], data: Mapping[str, Any]
) -> list[Override | ConfigError]:
    """Return a setting, or what is wrong with it, for each variable that begins with the prefix.

    Shorter paths come first, so that a longer one refines what a shorter one sets.
    """
    found: list[Override | ConfigError] = []
    for name in sorted(env, key=lambda name: (name.count("__"), name)):
        if name.upper().startswith(PREFIX):
            try:
                found.append(_from_variable(name, env[name], data))
            except ConfigError as error:
                found.append(error)
    return found


def apply(override: Override, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with the setting in it; only what changes is copied.

    Raises:
        ConfigError: the path leads through a value that is no mapping.
    """
    changed = _with(data, override.place, override.value, override)
    assert isinstance(changed, dict), "a mapping stays one"
    return changed


def place_of(data: Mapping[str, Any], application: str, keys: tuple[str, ...]) -> Path:
    """Return where an application's keys stand in the file."""
    entries = data["applications"]
    index = next(
        index
        for index, entry in enumerate(entries)
        if isinstance(entry, Mapping) and entry.get("name") == application
    )
    if kind_of(entries[index]) is Kind.GATEWAY and keys[:1] == (_USER_CONFIG,):
        return ("applications", index, "deployments", 0, *keys)
    return ("applications", index, "args", *keys)


def at(data: object, place: Path) -> object:
    """Return what stands at a place of the data; `NOTHING` where it leads nowhere."""
    here: Any = data
    for step in place:
        in_mapping = isinstance(here, Mapping) and step in here
        in_list = isinstance(here, list) and isinstance(step, int) and step < len(here)
        if not (in_mapping or in_list):
            return NOTHING
        here = here[step]
    return here


def _from_variable(name: str, value: str, data: Mapping[str, Any]) -> Override:
    names = _our_applications(data)
    rest = name[len(PREFIX) :]
    for application in sorted(names, key=len, reverse=True):
        start = f"{_folded(application)}__"
        if rest.lower().startswith(start):
            steps = rest[len(start) :].split("__")
            if not all(steps):
                break
            keys = _keys_of(steps, application, data)
            return _placed(name, application, keys, value, data)
    first = rest.partition("__")[0].lower()
    if first.replace("_", "-") in names or first in names:
        raise ConfigError(
            path=name,
            value=value,
            expected=f"{PREFIX}APPLICATION__PATH, such as {PREFIX}GATEWAY__PORT",
            hint="name the field; nothing is set by this variable",
        )
    raise _no_application(name, value, first, [item.replace("-", "_") for item in names])


def _keys_of(steps: Sequence[str], application: str, data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that a variable's steps mean: those of the file, else in lower case.

    Names below `env` stay as they are written: they are variables themselves, where case matters.
    """
    keys: list[str] = []
    for step in steps:
        here = at(data, place_of(data, application, tuple(keys)))
        known = [key for key in here if isinstance(key, str)] if isinstance(here, Mapping) else []
        same = [key for key in known if _folded(key) == _folded(step)]
        if step in known or keys == ["env"]:
            keys.append(step)
        elif len(same) > 1:
            raise ConfigError(
                path=f"{PREFIX}{'__'.join((_folded(application).upper(), *steps))}",
                value=step,
                expected=f"one key, and {' and '.join(same)} are both written like this",
                hint="use --set, which takes keys as they are",
            )
        else:
            keys.append(same[0] if same else step.lower())
    return tuple(keys)


def _folded(key: str) -> str:
    """Return a key as a variable's name may hold it, in lower case."""
    return re.sub(r"[^a-z0-9]", "_", key.lower())


def _joined(keys: tuple[str, ...], application: str, data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys, those joined again whose dots belong to a key of the file (`llama-3.1`).

    The longest such key wins; with brackets and quotes nothing is joined.
    """
    done: tuple[str, ...] = ()
    while keys:
        here = at(data, place_of(data, application, done))
        known = here if isinstance(here, Mapping) else {}
        sizes = [size for size in range(len(keys), 1, -1) if ".".join(keys[:size]) in known]
        size = sizes[0] if sizes else 1
        done, keys = (*done, ".".join(keys[:size])), keys[size:]
    return done


def _placed(
    origin: str, application: str, keys: tuple[str, ...], text: str, data: Mapping[str, Any]
) -> Override:
    try:
        value = document.load_value(text)
    except ConfigError as error:
        raise ConfigError(
            path=origin, value=text, expected="a YAML value", hint=error.hint or error.expected
        ) from error
    return Override(origin, application, keys, place_of(data, application, keys), value)


def _with(here: object, place: Path, value: object, override: Override) -> object:
    """Return `here` with the value at `place` in it; mappings that are missing are made."""
    if not place:
        return value
    step, rest = place[0], place[1:]
    if isinstance(step, int) and isinstance(here, list | None):
        items = list(here or [{"name": serve_keys.GATEWAY_DEPLOYMENT}])
        items[step] = _with(items[step], rest, value, override)
        return items
    if isinstance(step, int) or not isinstance(here, Mapping | None):
        raise ConfigError(
            path=override.origin,
            value=override.value,
            expected=f"a path through mappings, but the value before {step!r} is {here!r}",
            hint="set that value as a whole",
        )
    return {**(here or {}), step: _with((here or {}).get(step), rest, value, override)}


def _our_applications(data: Mapping[str, Any]) -> list[str]:
    entries = data.get("applications")
    return [
        entry["name"]
        for entry in (entries if isinstance(entries, list) else [])
        if kind_of(entry) is not Kind.OTHER and isinstance(entry.get("name"), str)
    ]


def _no_application(origin: str, value: str, name: str, names: Iterable[str]) -> ConfigError:
    known = list(names)
    return ConfigError(
        path=origin,
        value=value,
        expected=f"an aibrix_ray application of the file: {', '.join(known) or 'it has none'}",
        hint=did_you_mean(name, known) or "nothing is set by this, so remove it",
    )
