"""The settings of one gateway without Ray: `args` and `user_config`, as a Serve file has them.

Variables and flags are laid over them as over a Serve file whose gateway's application is called
`gateway`. Opens no file: it is handed the text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from aibrix_ray.config import document, override, serve_keys
from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.config.layers import Layers
from aibrix_ray.config.path import Path
from aibrix_ray.config.problems import NOTHING, check_part, unknown_key
from aibrix_ray.config.rules import check_models
from aibrix_ray.errors import ConfigError

#: The name of the application in variables: AIBRIX_RAY__GATEWAY__PORT.
_NAME = "gateway"
_KEYS = ("args", "user_config")
#: Where the two parts stand in the data that everything is laid over → where in the user's file.
_PLACES = {
    "applications[0].deployments[0].user_config": "user_config",
    "applications[0].args": "args",
}


class GatewayFlag(NamedTuple):
    """A flag that was given: its name, the field that it sets, as in `--set`, and the value."""

    origin: str
    keys: tuple[str, ...]
    value: object


def read_gateway_file(text: str, *, is_json: bool = False) -> Mapping[str, Any]:
    """Read the text of a file with the keys `args` and `user_config`; an empty one has neither.

    Raises:
        ConfigError: it is no YAML (or JSON), repeats a key, or has a key that nobody reads.
    """
    data = document.load_json(text) if is_json else document.load(text)
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigError(
            path="the file", value=data, expected=f"a mapping with the keys {' and '.join(_KEYS)}"
        )
    for key, value in data.items():
        if key == "applications":
            raise ConfigError(
                path=key,
                value=NOTHING,
                expected=f"one of the keys {', '.join(_KEYS)}",
                hint="this is a Serve file; `aibrix-ray serve` runs it",
            )
        if key not in _KEYS:
            raise unknown_key((key,), value, _KEYS)
    return data


def check_gateway(
    data: Mapping[str, Any],
    env: Mapping[str, str],
    flags: Sequence[GatewayFlag],
    *,
    models: Collection[str],
) -> tuple[tuple[GatewayArgs, GatewayUserConfig] | None, tuple[ConfigError, ...]]:
    """Return what is in effect (flag > env > file > default), or None and every problem.

    Args:
        data: what `read_gateway_file` returned.
        env: environment variables; only `AIBRIX_RAY__…` are looked at.
        flags: what was given on the command line; a value of false or 0 is a value.
        models: the models that there are backends for.
    """
    layers = Layers({"applications": [_application(data)]})
    layers.lay_environment(env)
    for flag in flags:
        place = override.place_of(layers.data, _NAME, flag.keys)
        layers.lay(override.Override(flag.origin, _NAME, flag.keys, place, flag.value), "flag")
    application = layers.data["applications"][0]
    path: Path = ("applications", 0)
    args, problems = check_part(GatewayArgs, application.get("args", {}), (*path, "args"))
    if args is not None:
        problems += _without_serve(args)
    base = (*path, "deployments", 0, "user_config")
    found = override.at(layers.data, base)
    user_config, more = check_part(GatewayUserConfig, {} if found is NOTHING else found, base)
    if user_config is not None:
        more += check_models(
            user_config,
            base,
            models,
            expected="a model that a --backend serves",
            hint="name its backend or remove the entry",
        )
    named = map(layers.named, (*problems, *more))
    problems = [*layers.problems, *map(_in_the_users_file, named)]
    if problems or args is None or user_config is None:
        return None, tuple(problems)
    return (args, user_config), ()


def _application(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the gateway's application of a Serve file with these settings."""
    application: dict[str, Any] = {"name": _NAME, "import_path": serve_keys.GATEWAY_PATH}
    if "args" in data:
        application["args"] = data["args"]
    if "user_config" in data:
        deployment = {"name": serve_keys.GATEWAY_DEPLOYMENT, "user_config": data["user_config"]}
        application["deployments"] = [deployment]
    return application


def _without_serve(args: GatewayArgs) -> list[ConfigError]:
    """Return the fields that ask for what only Serve does."""
    base = "applications[0].args"
    problems = []
    if args.listen != "own":
        problems.append(
            ConfigError(
                path=f"{base}.listen",
                value=args.listen,
                expected="own, because no proxy of Ray Serve's stands in front of this gateway",
                hint="remove it",
            )
        )
    if "per_node" in args.model_fields_set and args.per_node != 1:
        problems.append(
            ConfigError(
                path=f"{base}.per_node",
                value=args.per_node,
                expected="1, because this command is one gateway",
                hint="remove it",
            )
        )
    return problems


def _in_the_users_file(problem: ConfigError) -> ConfigError:
    path = problem.path
    for place, shown in _PLACES.items():
        path = path.replace(place, shown)
    return ConfigError(path=path, value=problem.value, expected=problem.expected, hint=problem.hint)
