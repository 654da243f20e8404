"""A Serve configuration file as a whole: its applications, and the rules between them.

Serve's own keys are kept as they are; what belongs to `aibrix_ray:gateway` and
`aibrix_ray:replica_group` is parsed into frozen models. Opens no file: it is handed the text.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aibrix_ray.config import document, serve_keys
from aibrix_ray.config.application import Application, Kind, read_application, unknown_keys
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.config.group import GroupArgs
from aibrix_ray.config.path import render
from aibrix_ray.config.problems import NOTHING, did_you_mean
from aibrix_ray.config.rules import check_between
from aibrix_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A file without problems.

    Attributes:
        data: the plain data that the models were made of, overrides applied.
        gateway_name: name of the gateway's application; None: the file has none.
        gateway: its arguments; None: the file has none.
        user_config: what the gateway is told at run time; the defaults where the file is silent.
        groups: application name → arguments, in the order of the file.
    """

    data: Mapping[str, Any]
    gateway_name: str | None
    gateway: GatewayArgs | None
    user_config: GatewayUserConfig
    groups: Mapping[str, GroupArgs]

    @property
    def models(self) -> dict[str, tuple[str, ...]]:
        """Model name → names of the groups that serve it."""
        models: dict[str, tuple[str, ...]] = {}
        for name, group in self.groups.items():
            models[group.model] = (*models.get(group.model, ()), name)
        return models

    def to_serve_dict(self) -> dict[str, Any]:
        """Return a copy of the plain data, to be given to Serve.

        Defaults are not written into it: Serve hashes `args` into an application's version, and
        a default that is spelled out would restart it.
        """
        return copy.deepcopy(dict(self.data))


@dataclass(frozen=True, slots=True)
class ServeFile:
    """The data of a file, read from YAML and not yet checked."""

    data: object

    @classmethod
    def read(cls, text: str) -> ServeFile:
        """Read the text of a file.

        Raises:
            ConfigError: the text is no YAML, repeats a key, is empty, or is no mapping.
        """
        data = document.load(text)
        if isinstance(data, Mapping):
            return cls(data)
        raise ConfigError(
            path="the file",
            value=NOTHING if data is None else data,
            expected="a mapping with the key applications",
            hint="see examples/quickstart.yaml",
        )

    def parse(self) -> ParsedFile:
        """Return the parsed file.

        Raises:
            ConfigError: the first problem; `check` returns them all.
        """
        parsed, problems = self.check()
        if problems:
            raise problems[0]
        assert parsed is not None, "no file and no problem"
        return parsed

    def check(self) -> tuple[ParsedFile | None, tuple[ConfigError, ...]]:
        """Return the parsed file, or None and every problem."""
        assert isinstance(self.data, Mapping), "read() lets only mappings through"
        problems = _check_top(self.data)
        entries = self.data.get("applications")
        applications = [
            read_application(entry, ("applications", index))
            for index, entry in enumerate(entries if isinstance(entries, list) else [])
        ]
        for application in applications:
            problems += application.problems
        problems += _check_names(applications)
        problems += check_between(self.data, applications)
        return (None if problems else _parsed(self.data, applications)), tuple(problems)


def _check_top(data: Mapping[str, Any]) -> list[ConfigError]:
    problems = unknown_keys(data, serve_keys.TOP_KEYS, ())
    location = data.get("proxy_location", "Disabled")
    if location not in serve_keys.PROXY_LOCATIONS:
        problems.append(
            ConfigError(
                path="proxy_location",
                value=location,
                expected=f"one of {', '.join(serve_keys.PROXY_LOCATIONS)}",
                hint=did_you_mean(location, serve_keys.PROXY_LOCATIONS),
            )
        )
    for key, known in serve_keys.NESTED_KEYS.items():
        value = data.get(key)
        if isinstance(value, Mapping):
            problems += unknown_keys(value, known, (key,))
        elif key in data and not (value is None and key in _NULLABLE):
            problems.append(ConfigError(path=key, value=value, expected="a mapping"))
    if not isinstance(data.get("applications"), list):
        problems.append(
            ConfigError(
                path="applications",
                value=data.get("applications", NOTHING),
                expected="a list of applications",
                hint="see examples/quickstart.yaml",
            )
        )
    return problems


#: mappings that Serve lets be null.
_NULLABLE = ("controller_options", "logging_config")


def _check_names(applications: list[Application]) -> list[ConfigError]:
    counts = Counter(application.name for application in applications if application.name)
    return [
        ConfigError(
            path=render((*application.path, "name")),
            value=application.name,
            expected="a name that no other application of the file has",
            hint="rename one of them",
        )
        for index, application in enumerate(applications)
        if counts[application.name] > 1
        and any(earlier.name == application.name for earlier in applications[:index])
    ]


def _parsed(data: Mapping[str, Any], applications: list[Application]) -> ParsedFile:
    gateways = [application for application in applications if application.kind is Kind.GATEWAY]
    gateway = gateways[0] if gateways else None
    return ParsedFile(
        data=data,
        gateway_name=gateway.name if gateway else None,
        gateway=gateway.gateway if gateway else None,
        user_config=(gateway.user_config if gateway else None) or GatewayUserConfig(),
        groups={
            application.name: application.group
            for application in applications
            if application.group is not None
        },
    )
