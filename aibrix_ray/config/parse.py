"""Plain data → the frozen models; the door that the Serve builders and `reconfigure` come through.

Each raises the first problem as a `ConfigError`; `file.py` collects all of a file instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.config.group import GroupArgs
from aibrix_ray.config.problems import P, check_part
from aibrix_ray.errors import ConfigError


def parse_gateway_args(data: Mapping[str, Any], *, path: str = "args") -> GatewayArgs:
    """Return the arguments of a gateway application.

    Args:
        data: the application's `args`.
        path: where `data` stands, for errors.

    Raises:
        ConfigError: a value is wrong, or nobody reads it.
    """
    return _parse(GatewayArgs, data, path)


def parse_gateway_user_config(
    data: Mapping[str, Any] | None, *, path: str = "user_config"
) -> GatewayUserConfig:
    """Return what a gateway may be told while it runs; None: the defaults.

    Raises:
        ConfigError: a value is wrong, or nobody reads it.
    """
    return _parse(GatewayUserConfig, {} if data is None else data, path)


def parse_group_args(data: Mapping[str, Any], *, path: str = "args") -> GroupArgs:
    """Return the arguments of a replica group's application.

    Raises:
        ConfigError: a value is wrong, or nobody reads it.
    """
    return _parse(GroupArgs, data, path)


def _parse(model: type[P], data: Mapping[str, Any], path: str) -> P:
    part, problems = check_part(model, data, ())
    if part is not None:
        return part
    first = problems[0]
    dot = "." if path and first.path and not first.path.startswith("[") else ""
    raise ConfigError(
        path=f"{path}{dot}{first.path}",
        value=first.value,
        expected=first.expected,
        hint=first.hint,
    )
