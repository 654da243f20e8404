"""One entry of `applications`: whose it is, what it says, and what is wrong within it.

Rules that need more than one application are in `file.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aibrix_ray.config import serve_keys
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.config.group import GroupArgs
from aibrix_ray.config.path import Path, render
from aibrix_ray.config.problems import NOTHING, check_part, did_you_mean, unknown_key
from aibrix_ray.errors import ConfigError

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_NAME_MAX = 63


class Kind(Enum):
    """Whose application it is."""

    GATEWAY = "gateway"
    GROUP = "replica group"
    OTHER = "other"


_KINDS = {serve_keys.GATEWAY_PATH: Kind.GATEWAY, serve_keys.GROUP_PATH: Kind.GROUP}


@dataclass(slots=True)
class Application:
    """What was read of one application; `args` and `user_config` are None where not valid."""

    path: Path
    data: Mapping[str, Any]
    kind: Kind
    name: str
    problems: list[ConfigError] = field(default_factory=list)
    gateway: GatewayArgs | None = None
    user_config: GatewayUserConfig | None = None
    #: where the user_config stands, or would stand.
    user_config_path: Path = ()
    group: GroupArgs | None = None


def kind_of(data: object) -> Kind:
    """Return whose application this is, by its import path."""
    import_path = data.get("import_path") if isinstance(data, Mapping) else None
    return _KINDS.get(import_path, Kind.OTHER) if isinstance(import_path, str) else Kind.OTHER


def read_application(data: object, path: Path) -> Application:
    """Read one application; what is wrong is collected in its `problems`."""
    if not isinstance(data, Mapping):
        problem = ConfigError(path=render(path), value=data, expected="a mapping")
        return Application(path, {}, Kind.OTHER, "", problems=[problem])
    name = data.get("name", "default")
    application = Application(path, data, kind_of(data), name if isinstance(name, str) else "")
    application.problems += unknown_keys(data, serve_keys.APPLICATION_KEYS, path)
    application.problems += _check_import_path(data, path)
    if application.kind is Kind.OTHER:
        application.problems += _check_shape(data, path)
    else:
        application.problems += _check_name(data, path)
        application.problems += _check_host_and_port(application)
        _read_args(application)
        _read_deployments(application)
    return application


def unknown_keys(data: Mapping[Any, Any], known: frozenset[str], path: Path) -> list[ConfigError]:
    """Return an error for each key that Serve would ignore in silence."""
    return [unknown_key((*path, key), data[key], known) for key in data if key not in known]


def _check_import_path(data: Mapping[str, Any], path: Path) -> list[ConfigError]:
    import_path = data.get("import_path", NOTHING)
    where = render((*path, "import_path"))
    if not isinstance(import_path, str):
        expected = f"{serve_keys.GATEWAY_PATH}, {serve_keys.GROUP_PATH} or module:name of your own"
        return [ConfigError(path=where, value=import_path, expected=expected)]
    module = re.split(r"[.:]", import_path)[0]
    if import_path in _KINDS or module.replace("-", "_") != "aibrix_ray":
        return []
    return [
        ConfigError(
            path=where,
            value=import_path,
            expected=f"one of {', '.join(_KINDS)}",
            hint=did_you_mean(import_path, _KINDS),
        )
    ]


def _check_shape(data: Mapping[str, Any], path: Path) -> list[ConfigError]:
    """Return what Serve itself would refuse of another's application, as far as we read it."""
    shapes = {
        "name": (str, "a text"),
        "args": (Mapping, "a mapping"),
        "deployments": (list, "a list"),
    }
    return [
        ConfigError(path=render((*path, key)), value=data[key], expected=expected)
        for key, (shape, expected) in shapes.items()
        if key in data and not (isinstance(data[key], shape) and data[key] != "")
    ]


def _check_name(data: Mapping[str, Any], path: Path) -> list[ConfigError]:
    name = data.get("name", NOTHING)
    if isinstance(name, str) and _NAME.fullmatch(name) and len(name) <= _NAME_MAX:
        return []
    fixed = re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")[:_NAME_MAX].strip("-")
    return [
        ConfigError(
            path=render((*path, "name")),
            value=name,
            expected="a name of lower-case letters, digits and single dashes, at most 63 of them",
            hint=f"write {fixed!r}" if isinstance(name, str) and fixed else "name the application",
        )
    ]


def _check_host_and_port(application: Application) -> list[ConfigError]:
    return [
        ConfigError(
            path=render((*application.path, key)),
            value=application.data[key],
            expected="no value here, Serve refuses it",
            hint=f"set args.{key}" if application.kind is Kind.GATEWAY else f"remove {key}",
        )
        for key in ("host", "port")
        if key in application.data
    ]


def _read_args(application: Application) -> None:
    path = (*application.path, "args")
    data = application.data.get("args", {})
    if application.kind is Kind.GATEWAY:
        application.gateway, problems = check_part(GatewayArgs, data, path)
    else:
        application.group, problems = check_part(GroupArgs, data, path)
    application.problems += problems


def _read_deployments(application: Application) -> None:
    path = (*application.path, "deployments")
    deployments = application.data.get("deployments", [])
    if not isinstance(deployments, list):
        application.problems.append(
            ConfigError(path=render(path), value=deployments, expected="a list of mappings")
        )
        return
    if application.kind is Kind.GROUP:
        if deployments:
            application.problems.append(_group_has_no_deployments(deployments, path))
        return
    application.user_config_path = (*path, 0, "user_config")
    application.user_config = GatewayUserConfig()
    for index, deployment in enumerate(deployments):
        _read_gateway_deployment(application, deployment, (*path, index))


def _group_has_no_deployments(deployments: list[Any], path: Path) -> ConfigError:
    return ConfigError(
        path=render(path),
        value=deployments,
        expected="no deployments: a replica group is set through its args alone",
        hint="set args.replicas, args.num_cpus, args.drain_timeout_s and the like instead",
    )


def _read_gateway_deployment(application: Application, deployment: object, path: Path) -> None:
    problems = application.problems
    if not isinstance(deployment, Mapping):
        problems.append(ConfigError(path=render(path), value=deployment, expected="a mapping"))
        return
    name = deployment.get("name", NOTHING)
    if name != serve_keys.GATEWAY_DEPLOYMENT or path[-1] != 0:
        problems.append(
            ConfigError(
                path=render((*path, "name")),
                value=name,
                expected=f"{serve_keys.GATEWAY_DEPLOYMENT!r}, the application's one deployment",
                hint=f"write name: {serve_keys.GATEWAY_DEPLOYMENT}, once",
            )
        )
    problems += unknown_keys(deployment, serve_keys.DEPLOYMENT_KEYS, path)
    problems += [
        ConfigError(
            path=render((*path, key)),
            value=deployment[key],
            expected="no value, because the gateway's args decide it",
            hint=f"set {instead} instead",
        )
        for key, instead in serve_keys.GATEWAY_OWNS.items()
        if key in deployment
    ]
    if "user_config" in deployment:
        application.user_config_path = (*path, "user_config")
        application.user_config, found = check_part(
            GatewayUserConfig, deployment["user_config"], application.user_config_path
        )
        problems += found
