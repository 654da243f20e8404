"""The rules between applications, and between them and Serve's own proxy.

Each rule is a function that returns what it found wrong; a rule that needs a part which could not
be read stays silent, since that part has a problem of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aibrix_ray.config.application import Application, Kind
from aibrix_ray.config.gateway import GatewayUserConfig, is_loopback
from aibrix_ray.config.path import Path, render
from aibrix_ray.config.problems import NOTHING, did_you_mean
from aibrix_ray.errors import ConfigError

#: Where Serve's proxy listens if a file is silent about it.
_SERVES_HOST = "0.0.0.0"


def check_between(
    data: Mapping[str, Any], applications: Sequence[Application]
) -> list[ConfigError]:
    """Return what is wrong between the applications of a file."""
    gateways = [item for item in applications if item.kind is Kind.GATEWAY]
    groups = [item for item in applications if item.kind is Kind.GROUP]
    problems = _check_one_gateway(gateways, groups)
    for group in groups:
        problems += _check_group_route(group)
    for gateway in gateways[:1]:
        if gateway.gateway is not None and gateway.gateway.listen == "own":
            problems += _check_own_socket(data, gateway)
        elif gateway.gateway is not None:
            problems += _check_serve_listens(data, gateway)
        problems += _check_models(gateway, groups)
    return problems


def _check_one_gateway(
    gateways: Sequence[Application], groups: Sequence[Application]
) -> list[ConfigError]:
    if groups and not gateways:
        return [
            ConfigError(
                path="applications",
                value=[group.name for group in groups],
                expected="an application with import_path aibrix_ray:gateway beside the groups",
                hint="add {name: gateway, import_path: 'aibrix_ray:gateway', route_prefix: null}",
            )
        ]
    return [
        ConfigError(
            path=render((*gateway.path, "import_path")),
            value=gateway.data["import_path"],
            expected=f"one gateway application a file, and {gateways[0].name!r} is one",
            hint="remove this application; args.per_node sets how many gateways run",
        )
        for gateway in gateways[1:]
    ]


def _check_group_route(group: Application) -> list[ConfigError]:
    # Serve's default is "/", so a key that is left out is as wrong as a wrong value.
    route = group.data.get("route_prefix", NOTHING)
    if route is None:
        return []
    return [
        ConfigError(
            path=render((*group.path, "route_prefix")),
            value=route,
            expected="null, because clients reach a replica group through the gateway only",
            hint="write route_prefix: null",
        )
    ]


def _check_own_socket(data: Mapping[str, Any], gateway: Application) -> list[ConfigError]:
    problems = []
    route = gateway.data.get("route_prefix", NOTHING)
    if route is not None:
        problems.append(
            ConfigError(
                path=render((*gateway.path, "route_prefix")),
                value=route,
                expected="null, because with listen: own no proxy of Serve's routes to the gateway",
                hint="write route_prefix: null, or set args.listen: serve",
            )
        )
    location = data.get("proxy_location", NOTHING)
    if location is NOTHING or location in ("EveryNode", "HeadOnly"):
        problems.append(
            ConfigError(
                path="proxy_location",
                value=location,
                expected="Disabled, because Serve would start its own proxy on a port "
                "(its default is EveryNode)",
                hint="write proxy_location: Disabled, or set args.listen: serve",
            )
        )
    if data.get("http_options"):
        problems.append(
            ConfigError(
                path="http_options",
                value=data["http_options"],
                expected="nothing, because with listen: own no proxy of Serve's reads it",
                hint=f"set host, port and keep_alive_s in {render((*gateway.path, 'args'))} "
                "instead, or set args.listen: serve",
            )
        )
    return problems


def _check_serve_listens(data: Mapping[str, Any], gateway: Application) -> list[ConfigError]:
    problems = []
    if data.get("proxy_location") == "Disabled":
        problems.append(
            ConfigError(
                path="proxy_location",
                value="Disabled",
                expected="EveryNode or HeadOnly, because with listen: serve nobody else listens",
                hint="write proxy_location: EveryNode, or set args.listen: own",
            )
        )
    if gateway.data.get("route_prefix", "/") is None:
        problems.append(
            ConfigError(
                path=render((*gateway.path, "route_prefix")),
                value=None,
                expected="a route, because with listen: serve clients come through Serve's proxy",
                hint="write route_prefix: /, or set args.listen: own",
            )
        )
    return problems + _check_serves_door(data, gateway)


def _check_serves_door(data: Mapping[str, Any], gateway: Application) -> list[ConfigError]:
    """What `GatewayArgs` demands of its own `host`, where Serve's proxy listens instead."""
    assert gateway.gateway is not None, "a gateway that cannot be read is not checked"
    options = data.get("http_options")
    host = (options if isinstance(options, Mapping) else {}).get("host", _SERVES_HOST)
    auth = gateway.gateway.auth
    if auth.keys or auth.open_to_network or not isinstance(host, str) or is_loopback(host):
        return []
    return [
        ConfigError(
            path="http_options.host",
            value=host,
            expected="an address of this machine alone, such as 127.0.0.1, because no keys are "
            "asked for (Serve's default is 0.0.0.0)",
            hint="write http_options: {host: 127.0.0.1}, or in "
            f"{render((*gateway.path, 'args', 'auth'))} set keys: true or open_to_network: true",
        )
    ]


def _check_models(gateway: Application, groups: Sequence[Application]) -> list[ConfigError]:
    parts = [group.group for group in groups if group.group is not None]
    if gateway.user_config is None or len(parts) < len(groups):
        return []
    served = {part.model for part in parts}
    return check_models(
        gateway.user_config,
        gateway.user_config_path,
        served,
        expected="a model that a replica group serves",
        hint="add a group for it or remove the entry",
    )


def check_models(
    user_config: GatewayUserConfig, base: Path, served: Iterable[str], *, expected: str, hint: str
) -> list[ConfigError]:
    """Return settings for a model that is not served, and aliases that hide one that is.

    Args:
        user_config: the settings.
        base: where they stand.
        served: the models that are served.
        expected: what a model should be, for errors; the names of those served are added.
        hint: the way out where no served name is near.
    """
    names = sorted(served)
    problems = []
    for model, settings in user_config.models.items():
        path = (*base, "models", model)
        if model not in names:
            problems.append(
                ConfigError(
                    path=render(path),
                    value=model,
                    expected=f"{expected}: {', '.join(names) or 'none'}",
                    hint=did_you_mean(model, names) or hint,
                )
            )
        problems += [
            ConfigError(
                path=render((*path, "aliases")),
                value=alias,
                expected="an alias that is not itself the name of a served model",
                hint=f"remove {alias!r}",
            )
            for alias in settings.aliases
            if alias in names and alias not in user_config.models
        ]
    return problems
