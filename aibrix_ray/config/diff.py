"""What a change of the file would do to an installation that runs. Compares; applies nothing.

Serve hashes an application's `args`, `import_path` and `runtime_env` into its version: any change
there restarts all its replicas. Everything else of an application is applied in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from aibrix_ray.config import serve_keys
from aibrix_ray.config.file import ParsedFile
from aibrix_ray.config.path import Path, render
from aibrix_ray.config.problems import NOTHING


class Effect(Enum):
    """What happens to an application."""

    UNCHANGED = "unchanged"
    RECONFIGURED = "reconfigured in place"
    RESTARTED = "restarted"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs; `path` is relative to its application (or to the file).

    A side where the value is not given is `NOTHING`.
    """

    path: str
    old: object
    new: object


@dataclass(frozen=True, slots=True)
class ApplicationChange:
    """What happens to one application and which changes do it."""

    name: str
    effect: Effect
    changes: tuple[Change, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Diff:
    """What a change of the file does.

    Attributes:
        applications: one entry an application, in the order of the new file, removed ones last.
        serve: changes that a running Serve does not take: all of Serve must be shut down first.
    """

    applications: tuple[ApplicationChange, ...]
    serve: tuple[Change, ...]


def diff(old: ParsedFile, new: ParsedFile) -> Diff:
    """Return what applying `new` does to an installation that runs `old`."""
    before, after = _by_name(old), _by_name(new)
    changes = [_compare(name, before.get(name), entry) for name, entry in after.items()]
    changes += [
        ApplicationChange(
            name,
            Effect.REMOVED,
            note="`serve deploy FILE` deletes every application that FILE lacks",
        )
        for name in before
        if name not in after
    ]
    return Diff(tuple(changes), serve=tuple(_serve_changes(old.data, new.data)))


#: top-level keys that Serve applies while it runs.
_APPLIED_LIVE = ("applications", "logging_config", "target_capacity")


def _serve_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in sorted(serve_keys.TOP_KEYS.difference(_APPLIED_LIVE)):
        yield from _changes((key,), old.get(key, NOTHING), new.get(key, NOTHING))


def _by_name(parsed: ParsedFile) -> dict[str, Mapping[str, Any]]:
    return {entry.get("name", "default"): entry for entry in parsed.data["applications"]}


def _compare(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> ApplicationChange:
    if old is None:
        return ApplicationChange(name, Effect.ADDED)
    changes = [
        (change, key in serve_keys.RESTARTING_APPLICATION_KEYS)
        for key in sorted(serve_keys.APPLICATION_KEYS - {"deployments", "name"})
        for change in _changes((key,), old.get(key, NOTHING), new.get(key, NOTHING))
    ]
    changes += _deployment_changes(old, new)
    if not changes:
        return ApplicationChange(name, Effect.UNCHANGED)
    restarts = [change for change, restart in changes if restart]
    if not restarts:
        return ApplicationChange(name, Effect.RECONFIGURED, tuple(change for change, _ in changes))
    return ApplicationChange(name, Effect.RESTARTED, tuple(restarts), note=_gap(new))


def _deployment_changes(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[Change, bool]]:
    """Yield each change of a deployment's options, and whether it restarts the replicas."""
    before, after = _deployments(old), _deployments(new)
    for name in sorted({*before, *after}):
        one, other = before.get(name, {}), after.get(name, {})
        for key in sorted(serve_keys.DEPLOYMENT_KEYS - {"name"}):
            restarts = key in serve_keys.RESTARTING_DEPLOYMENT_KEYS
            path = ("deployments", name, key)
            for change in _changes(path, one.get(key, NOTHING), other.get(key, NOTHING)):
                yield change, restarts


def _deployments(application: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    # The entries of an application that is not ours were not checked: they may be anything.
    entries = [entry for entry in application.get("deployments", ()) if isinstance(entry, Mapping)]
    return {str(entry.get("name")): entry for entry in entries}


def _changes(path: Path, old: object, new: object) -> Iterator[Change]:
    """Yield the values that differ, as deep as both sides are mappings."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in (*old, *(key for key in new if key not in old)):
            yield from _changes((*path, key), old.get(key, NOTHING), new.get(key, NOTHING))
    # 1 == True == 1.0 in Python, and Serve's hash of the file tells them apart.
    elif type(old) is not type(new) or old != new:
        yield Change(render(path), old, new)


def _gap(new: Mapping[str, Any]) -> str:
    """Return what an application's restart means for its clients."""
    if new.get("import_path") == serve_keys.GATEWAY_PATH:
        return "new gateways start before old ones stop"
    if new.get("import_path") != serve_keys.GROUP_PATH:
        return ""
    if new.get("args", {}).get("max_surge_percent", 0) > 0:
        return "new replicas start before old ones stop (max_surge_percent)"
    return "old replicas stop before new ones start; max_surge_percent: 100 turns that round"
