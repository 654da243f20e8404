"""Named plug-ins: a table by name, or an import path written by the user.

One `Registry` a kind (routing policies, engines, …). Registering is one decorator; what the YAML
names is either a registered name or `package.module:attribute`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from aibrix_ray.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Holds the implementations of one kind by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Register the decorated object under `name`; a name is taken only once."""

        def add(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
            self._entries[name] = entry
            return entry

        return add

    def resolve(self, name: str, *, path: str) -> T:
        """Return what `name` stands for.

        Args:
            name: a registered name, or `package.module:attribute`.
            path: where the name stands in the configuration, for the error.

        Raises:
            ConfigError: the name is unknown or its import fails (the cause is chained).
        """
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return self._import(name, path=path)
        near = difflib.get_close_matches(name, self._entries, n=1)
        raise ConfigError(
            path=path,
            value=name,
            expected=f"a {self.kind}: one of {', '.join(self)}, or an import path `module:name`",
            hint=f"did you mean {near[0]!r}?" if near else "",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _import(self, name: str, *, path: str) -> T:
        module_name, _, attribute = name.partition(":")
        try:
            found: T = getattr(importlib.import_module(module_name), attribute)
        # A user's module may fail in any way while it is imported.
        except Exception as error:
            raise ConfigError(
                path=path,
                value=name,
                expected=f"an importable {self.kind} `module:name`",
                hint=f"{type(error).__name__}: {error}",
            ) from error
        return found
