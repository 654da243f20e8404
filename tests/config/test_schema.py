from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from aibrix_ray.config import json_schema
from tests.config.files import GATEWAY, GROUP, QUICKSTART, make_file


def problems(text: str) -> list[Any]:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return list(jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load(text)))


@pytest.mark.parametrize(
    "text",
    [
        QUICKSTART.read_text(),
        make_file(),
        make_file(group_args="{model: m, engine: {}}"),
        make_file(group_args="{model: m, engine: {kind: simulated, speed: 2}}"),
        make_file(group_args="{model: m, replicas: {min: 0}, source: null}"),
        make_file(top="", more="- {import_path: 'm:a', args: {any: thing}}"),
        make_file(top="http_options: {port: 1}\nlogging_config: null"),
    ],
)
def test_a_good_file_fits_the_schema(text: str) -> None:
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (make_file(gateway_args="{prot: 1}"), ["applications", 0, "args"]),
        (make_file(gateway_args="{port: '1'}"), ["applications", 0, "args", "port"]),
        (make_file(gateway_args="{port: true}"), ["applications", 0, "args", "port"]),
        (make_file(gateway_args="{listen: sreve}"), ["applications", 0, "args", "listen"]),
        (make_file(group_args="{}"), ["applications", 1, "args"]),
        (make_file(group_args="{model: m, engine: {kind: x}}"),
         ["applications", 1, "args", "engine"]),
        (make_file(group_args="{model: m, engine: {kv_blocks: 1}}"),
         ["applications", 1, "args", "engine"]),
        (make_file(group=GROUP.replace("null", "/")), ["applications", 1, "route_prefix"]),
        (make_file(group=GROUP.replace("tiny\n", "Tiny\n")), ["applications", 1, "name"]),
        (make_file(user_config="{models: {m: {aliases: x}}}"),
         ["applications", 0, "deployments", 0, "user_config", "models", "m", "aliases"]),
        (make_file(gateway=GATEWAY + "  deployments: [{name: x}]\n"),
         ["applications", 0, "deployments", 0, "name"]),
        (make_file(top="proxy_location: None"), ["proxy_location"]),
        (make_file(top="aplications: []"), []),
    ],
)  # fmt: skip
def test_a_bad_file_does_not_and_the_place_is_found(text: str, path: list[str | int]) -> None:
    assert path in [list(problem.absolute_path) for problem in problems(text)]


def test_an_editor_is_told_what_each_field_means() -> None:
    definitions = json_schema()["$defs"]
    assert "TCP port" in definitions["GatewayArgs"]["properties"]["port"]["description"]
    assert "GiB" in definitions["VllmEngineConfig"]["properties"]["kv_cache_gib"]["description"]
    assert json.loads(json.dumps(json_schema())) == json_schema()
