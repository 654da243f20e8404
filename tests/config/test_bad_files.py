"""Bad files: each message names the place, and the way out or the nearest valid name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from aibrix_ray.config import ServeFile, check, diff
from aibrix_ray.errors import ConfigError
from tests.config.files import GATEWAY, GROUP, QUICKSTART, make_file

_GATEWAY = "applications[0]"
_GROUP = "applications[1]"
_ARGS = f"{_GROUP}.args"
_USER = f"{_GATEWAY}.deployments[0].user_config"

#: name: (text, path of the problem, what the message must also say)
CASES: dict[str, tuple[str, str, str]] = {
    "empty": ("", "the file", "expected a mapping"),
    "only comments": ("# nothing\n---\n", "the file", "got nothing"),
    "a list": ("- a\n", "the file", "expected a mapping"),
    "a text": ("hello", "the file", "'hello'"),
    "syntax": ("a: [1, 2\nb: 3\n", "line 2, column 2", "expected ',' or ']'"),
    "tab": ("a:\n\tb: 1\n", "line 2, column 1", "indent with spaces"),
    "colon in a value": ("a: b: c\n", "line 1, column 5", "not allowed here"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2, column 1", "single document"),
    "python tag": ("a: !!python/object:os.system {}\n", "line 1, column 4", "constructor"),
    "control character": ("a: \x00\n", "the text", "special characters"),
    "date": ("a: 2026-13-45\n", "the text", "in quotes"),
    "contains itself": ("a: &x [*x]\n", "a[0]", "contain itself"),
    "repeated key": (
        make_file(group_args="{model: tiny, num_cpus: 1, num_cpus: 2}"),
        f"{_ARGS}.num_cpus",
        "line 9 repeats line 9; remove one of the two",
    ),
    "repeated top key": ("proxy_location: Disabled\nproxy_location: EveryNode\n", "proxy_location",
                         "line 2 repeats line 1"),
    "list as key": ("a: {[1, 2]: 3}\n", "line 1", "quote the key"),
    "no applications": ("proxy_location: Disabled\n", "applications", "got nothing"),
    "applications empty": ("applications:\n", "applications", "a list of applications"),
    "unknown top key": (make_file(top="proxy_locaton: Disabled"), "proxy_locaton",
                        "did you mean 'proxy_location'?"),
    "unknown http option": (make_file(top="http_options: {prt: 1}"), "http_options.prt",
                            "did you mean 'port'?"),
    "http_options is a text": (make_file(top="http_options: a"), "http_options", "a mapping"),
    "unknown location": (make_file(top="proxy_location: disabled"), "proxy_location",
                         "did you mean 'Disabled'?"),
    "location left out": (make_file(top=""), "proxy_location", "write proxy_location: Disabled"),
    "location of the default": (make_file(top="proxy_location: EveryNode"), "proxy_location",
                                "or set args.listen: serve"),
    "http_options unread": (
        make_file(top="proxy_location: Disabled\nhttp_options: {port: 9}"),
        "http_options",
        "applications[0].args instead",
    ),
    "application is a text": (make_file(more="- gateway"), "applications[2]", "a mapping"),
    "unknown application key": (make_file(group=GROUP + "  arg: {}\n"), f"{_GROUP}.arg",
                                "did you mean 'args'?"),
    "no import path": (make_file(more="- {name: x}"), "applications[2].import_path", "got nothing"),
    "name of another's application": (
        make_file(more="- {name: [x], import_path: 'm:a'}"),
        "applications[2].name",
        "a text",
    ),
    "near import path": (make_file(group=GROUP.replace("replica_group", "replica_groups")),
                         f"{_GROUP}.import_path", "did you mean 'aibrix_ray:replica_group'?"),
    "dotted import path": (make_file(gateway=GATEWAY.replace(":gateway", ".gateway")),
                           f"{_GATEWAY}.import_path", "did you mean 'aibrix_ray:gateway'?"),
    "no name": (make_file(group=GROUP.replace("name: tiny", "runtime_env: {}")), f"{_GROUP}.name",
                "name the application"),
    "odd name": (make_file(group=GROUP.replace("name: tiny", "name: Tiny_A10")), f"{_GROUP}.name",
                 "write 'tiny-a10'"),
    "name used twice": (make_file(more=GROUP), "applications[2].name", "rename one of them"),
    "groups without gateway": (make_file(gateway=""), "applications", "aibrix_ray:gateway"),
    "two gateways": (make_file(more=GATEWAY.replace("name: gateway", "name: other")),
                     "applications[2].import_path", "args.per_node"),
    "route left out": (make_file(gateway=GATEWAY.replace("  route_prefix: null\n", "")),
                       f"{_GATEWAY}.route_prefix", "write route_prefix: null"),
    "group with a route": (make_file(group=GROUP.replace("null", "/tiny")),
                           f"{_GROUP}.route_prefix", "write route_prefix: null"),
    "serve listens at no route": (
        make_file(top="", gateway_args="{listen: serve}"), f"{_GATEWAY}.route_prefix",
        "write route_prefix: /",
    ),
    "serve listens and is disabled": (
        make_file(gateway=GATEWAY.replace("null", "/"), gateway_args="{listen: serve}"),
        "proxy_location",
        "write proxy_location: EveryNode",
    ),
    "others reach the gateway, and no keys": (
        make_file(gateway_args="{host: 0.0.0.0}"),
        f"{_GATEWAY}.args.auth.keys",
        "auth.open_to_network: true",
    ),
    "others reach Serve's proxy, and no keys": (
        make_file(
            top="http_options: {port: 9}",
            gateway=GATEWAY.replace("null", "/"),
            gateway_args="{listen: serve}",
        ),
        "http_options.host",
        "http_options: {host: 127.0.0.1}",
    ),
    "port of the application": (make_file(gateway=GATEWAY + "  port: 8000\n"),
                                f"{_GATEWAY}.port", "set args.port"),
    "unknown argument": (make_file(gateway_args="{prot: 1}"), f"{_GATEWAY}.args.prot",
                         "did you mean 'port'?"),
    "args empty": (make_file(gateway=GATEWAY + "  args:\n"), f"{_GATEWAY}.args", "a mapping"),
    "args is a list": (make_file(gateway_args="[]"), f"{_GATEWAY}.args", "a mapping"),
    "no model": (make_file(group_args="{}"), f"{_ARGS}.model", "got nothing"),
    "quoted number": (make_file(gateway_args="{port: '80'}"), f"{_GATEWAY}.args.port",
                      "write 80, without quotes"),
    "yaml's float": (make_file(group_args="{model: m, num_cpus: 1e3}"), f"{_ARGS}.num_cpus",
                     "write 1000, without quotes"),
    "fraction": (make_file(gateway_args="{port: 80.0}"), f"{_GATEWAY}.args.port", "write 80"),
    "unit in the value": (make_file(gateway_args="{drain_timeout_s: 5s}"),
                          f"{_GATEWAY}.args.drain_timeout_s", "it means: Seconds"),
    "port too large": (make_file(gateway_args="{port: 65536}"), f"{_GATEWAY}.args.port",
                       "at most 65535"),
    "number as name": (make_file(group_args="{model: 1.0}"), f"{_ARGS}.model", 'quotes: "1.0"'),
    "boolean as name": (make_file(group_args="{model: no}"), f"{_ARGS}.model",
                        "YAML reads yes, no"),
    "boolean as number": (make_file(group_args="{model: m, num_cpus: true}"), f"{_ARGS}.num_cpus",
                          "true and false are not numbers"),
    "number as boolean": (make_file(group_args="{model: m, engine: {prefix_caching: 0}}"),
                          f"{_ARGS}.engine.prefix_caching", "write true or false"),
    "infinity": (make_file(group_args="{model: m, num_cpus: .inf}"), f"{_ARGS}.num_cpus",
                 "a finite number"),
    "empty value": (make_file(group_args="{model: m, replicas: {min: }}"), f"{_ARGS}.replicas.min",
                    "remove the key to get the default (1)"),
    "min above max": (make_file(group_args="{model: m, replicas: {min: 3, max: 2}}"),
                      f"{_ARGS}.replicas.max", "raise replicas.max or lower replicas.min"),
    "no replica at all": (make_file(group_args="{model: m, replicas: {min: 0, max: 0}}"),
                          f"{_ARGS}.replicas.max", "at least 1"),
    "variable that is no text": (make_file(group_args="{model: m, env: {A: 1}}"),
                                 f"{_ARGS}.env.A", 'put it in quotes: "1"'),
    "variable with a dash": (make_file(group_args="{model: m, env: {A-B: x}}"),
                             f"{_ARGS}.env.A-B", "letters, digits and underscores"),
    "unknown engine": (make_file(group_args="{model: m, engine: {kind: vlm}}"),
                       f"{_ARGS}.engine.kind", "did you mean 'vllm'?"),
    "engine by name": (make_file(group_args="{model: m, engine: vllm}"), f"{_ARGS}.engine",
                       "{kind: vllm}"),
    "other engine's setting": (
        make_file(group_args="{model: m, engine: {kind: simulated, dtype: auto}}"),
        f"{_ARGS}.engine.dtype", "max_num_batched_tokens"),
    "unknown dtype": (make_file(group_args="{model: m, engine: {dtype: bf16}}"),
                      f"{_ARGS}.engine.dtype", "one of auto, half"),
    "builtin without a name": (make_file(group_args="{model: m, source: 'builtin:'}"),
                               f"{_ARGS}.source", "builtin:tiny"),
    "U61": (make_file(group_args="{model: m, accelerator: L4, engine: {kv_cache_gib: 2}}"),
            f"{_ARGS}.accelerator", "engine.kv_cache_gib"),
    "deployments of a group": (make_file(group=GROUP + "  deployments: [{name: x}]\n"),
                               f"{_GROUP}.deployments", "args.replicas"),
    "deployments is a mapping": (make_file(gateway=GATEWAY + "  deployments: {}\n"),
                                 f"{_GATEWAY}.deployments", "a list of mappings"),
    "deployment is a text": (make_file(gateway=GATEWAY + "  deployments: [gateway]\n"),
                             f"{_GATEWAY}.deployments[0]", "a mapping"),
    "deployment's name": (make_file(gateway=GATEWAY + "  deployments: [{name: gatway}]\n"),
                          f"{_GATEWAY}.deployments[0].name", "write name: gateway"),
    "deployment's option": (
        make_file(gateway=GATEWAY + "  deployments: [{name: gateway, usr_config: {}}]\n"),
        f"{_GATEWAY}.deployments[0].usr_config", "did you mean 'user_config'?"),
    "deployment's size": (
        make_file(gateway=GATEWAY + "  deployments: [{name: gateway, num_replicas: 3}]\n"),
        f"{_GATEWAY}.deployments[0].num_replicas", "set args.per_node"),
    "user_config empty": (
        make_file(gateway=GATEWAY + "  deployments: [{name: gateway, user_config: }]\n"), _USER,
        "a mapping"),
    "unknown user_config": (make_file(user_config="{rooting: {}}"), f"{_USER}.rooting",
                            "did you mean 'routing'?"),
    "policy by itself": (make_file(user_config="{routing: random}"), f"{_USER}.routing",
                         "a mapping"),
    "aliases as text": (make_file(user_config="{models: {tiny: {aliases: a b}}}"),
                        f"{_USER}.models.tiny.aliases", "write a list: [a b]"),
    "unknown model": (make_file(user_config="{models: {tinny: {}}}"), f"{_USER}.models.tinny",
                      "did you mean 'tiny'?"),
    "unknown model with a dot": (make_file(user_config="{models: {other/a.b: {}}}"),
                                 f'{_USER}.models["other/a.b"]', "add a group for it"),
    "model that is a number": (make_file(user_config="{models: {7: {}}}"),
                               f"{_USER}.models[7]", 'put it in quotes: "7"'),
    "setting of a model": (make_file(user_config="{models: {tiny: {timeout: 3}}}"),
                           f"{_USER}.models.tiny.timeout", "did you mean 'timeout_s'?"),
    "alias of two models": (
        make_file(user_config="{models: {tiny: {aliases: [x]}, big: {aliases: [x]}}}"),
        f"{_USER}.models.big.aliases", "remove 'x' here or there"),
    "alias that is a model": (
        make_file(user_config="{models: {tiny: {aliases: [big]}}}",
                  more=GROUP.replace("tiny", "big")),
        f"{_USER}.models.tiny.aliases", "remove 'big'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_told_where_and_how_to_mend_it(name: str) -> None:
    text, path, told = CASES[name]
    with pytest.raises(ConfigError) as caught:
        ServeFile.read(text).parse()
    error = caught.value
    assert error.path == path
    assert told in str(error)
    assert "\n" not in str(error)


def test_all_problems_of_a_file_are_listed() -> None:
    text = make_file(
        top="proxy_location: EveryNode\nhttp_option: {}",
        gateway_args="{port: 0, per_nod: 1}",
        group_args="{model: 1, num_cpus: -1}",
    )
    parsed, problems = ServeFile.read(text).check()
    assert parsed is None
    assert [problem.path for problem in problems] == [
        "http_option",
        "applications[0].args.port",
        "applications[0].args.per_nod",
        "applications[1].args.model",
        "applications[1].args.num_cpus",
    ]


def test_a_message_stays_short_however_long_the_value_is() -> None:
    text = make_file(gateway_args="{port: " + "x" * 100_000 + "}")
    _, problems = ServeFile.read(text).check()
    assert len(str(problems[0])) < 500


def test_a_file_that_nests_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="too deep"):
        ServeFile.read("a: " + "[" * 20_000)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    steps = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for step in steps:
        yield from places(data[step], (*path, step))


def replaced(data: Any, path: tuple[Any, ...], value: object) -> Any:
    if not path:
        return value
    changed = copy.copy(data)
    changed[path[0]] = replaced(data[path[0]], path[1:], value)
    return changed


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, "", "x", [], ["a"], [{}], {}, {1: 2}, {"kind": []}, b"x"]
)
def test_whatever_stands_wherever_ends_in_a_problem_or_a_file_and_no_crash(value: object) -> None:
    good = yaml.safe_load(QUICKSTART.read_text())
    good["applications"].append(
        {"name": "o", "import_path": "m:a", "args": {}, "deployments": [{"name": "D"}]}
    )
    runs = ServeFile(good).parse()
    for path in places(good):
        text = yaml.safe_dump(replaced(good, path, value))
        found, problems = check(text, {"AIBRIX_RAY__TINY__NUM_CPUS": "1"}, ["gateway.port=1"])
        assert (found is None) == bool(problems), path
        assert all(problem.path and "\n" not in str(problem) for problem in problems), path
        if found is not None:
            names = {item.name for item in diff(runs, found[0]).applications}
            assert names >= {"o", *found[0].groups}
