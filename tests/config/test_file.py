from __future__ import annotations

import subprocess
import sys
import time
import warnings
from typing import Any

import pytest
import yaml

from aibrix_ray.config import (
    GatewayArgs,
    GatewayUserConfig,
    GroupArgs,
    ParsedFile,
    ReplicasConfig,
    ServeFile,
    VllmEngineConfig,
    serve_keys,
)
from aibrix_ray.errors import ConfigError
from tests.config.files import GATEWAY, GROUP, QUICKSTART, make_file


def parse(text: str) -> ParsedFile:
    return ServeFile.read(text).parse()


@pytest.fixture(scope="module")
def ray_schema() -> Any:
    # Ray's own modules warn of pydantic's old spellings while they load.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve import config, schema
    return {**vars(schema), "ControllerOptions": config.ControllerOptions}


def test_the_quickstart_is_parsed_into_models() -> None:
    parsed = parse(QUICKSTART.read_text())
    assert parsed.gateway_name == "gateway"
    assert parsed.gateway == GatewayArgs(drain_timeout_s=5.0)
    assert parsed.user_config.routing.policy == "least-request"
    assert parsed.user_config.models["tiny"].aliases == ("default",)
    assert parsed.groups == {
        "tiny": GroupArgs(
            model="tiny",
            source="builtin:tiny",
            engine=VllmEngineConfig(max_model_len=2048, max_num_seqs=16),
            replicas=ReplicasConfig(min=1, max=1),
            drain_timeout_s=5.0,
        )
    }
    assert parsed.models == {"tiny": ("tiny",)}


def test_serve_gets_what_the_file_says_and_no_defaults() -> None:
    text = QUICKSTART.read_text()
    parsed = parse(text)
    given = parsed.to_serve_dict()
    assert given == yaml.safe_load(text)
    given["applications"].clear()
    assert parsed.to_serve_dict() == yaml.safe_load(text)


def test_the_quickstart_is_valid_for_serve_itself(ray_schema: Any) -> None:
    given = parse(QUICKSTART.read_text()).to_serve_dict()
    deployed = ray_schema["ServeDeploySchema"].model_validate(given)
    assert [application.name for application in deployed.applications] == ["gateway", "tiny"]


def test_our_names_of_serves_keys_are_those_of_the_installed_ray(ray_schema: Any) -> None:
    def fields(name: str) -> set[str]:
        return set(ray_schema[name].model_fields)

    assert fields("ServeDeploySchema") == serve_keys.TOP_KEYS
    assert fields("ServeApplicationSchema") == serve_keys.APPLICATION_KEYS
    assert fields("DeploymentSchema") == serve_keys.DEPLOYMENT_KEYS
    assert fields("HTTPOptionsSchema") == serve_keys.NESTED_KEYS["http_options"]
    assert fields("gRPCOptionsSchema") == serve_keys.NESTED_KEYS["grpc_options"]
    assert fields("LoggingConfig") == serve_keys.NESTED_KEYS["logging_config"]
    assert fields("ControllerOptions") == serve_keys.NESTED_KEYS["controller_options"]
    assert {item.value for item in ray_schema["ProxyLocation"]} == set(serve_keys.PROXY_LOCATIONS)
    assert serve_keys.RESTARTING_DEPLOYMENT_KEYS <= serve_keys.DEPLOYMENT_KEYS
    assert serve_keys.RESTARTING_APPLICATION_KEYS <= serve_keys.APPLICATION_KEYS
    assert set(serve_keys.GATEWAY_OWNS) <= serve_keys.DEPLOYMENT_KEYS


def test_a_gateway_may_stand_alone_and_says_nothing_by_default() -> None:
    parsed = parse(make_file(group=""))
    assert parsed.gateway == GatewayArgs()
    assert parsed.user_config == GatewayUserConfig()
    assert parsed.groups == {}


def test_groups_with_the_same_model_serve_it_together() -> None:
    parsed = parse(make_file(more=GROUP.replace("name: tiny", "name: tiny-2")))
    assert parsed.models == {"tiny": ("tiny", "tiny-2")}


def test_applications_of_others_are_left_alone() -> None:
    other = """
    - name: my_App
      import_path: my.module:app
      args: {anything: [1, {a: }]}
      deployments: [{name: D, num_replicas: 2, user_config: [1]}]
    """
    parsed = parse(make_file(more=other))
    assert parsed.to_serve_dict()["applications"][2]["args"] == {"anything": [1, {"a": None}]}
    assert parse("applications:\n- {import_path: 'm:a'}\n").gateway is None


def test_serve_may_listen_instead() -> None:
    gateway = GATEWAY.replace("null", "/v1")
    text = make_file(
        top="http_options: {port: 9000, host: 127.0.0.1}",
        gateway=gateway,
        gateway_args="{listen: serve}",
    )
    parsed = parse(text)
    assert parsed.gateway is not None
    assert parsed.gateway.listen == "serve"


def test_merge_keys_and_anchors_may_be_used() -> None:
    text = make_file(
        group_args="&base {model: tiny, num_cpus: 2}",
        more="""
        - name: tiny-2
          import_path: aibrix_ray:replica_group
          route_prefix: null
          args: {<<: *base, num_cpus: 4}
        """,
    )
    groups = parse(text).groups
    assert [groups[name].num_cpus for name in ("tiny", "tiny-2")] == [2.0, 4.0]
    assert groups["tiny-2"].model == "tiny"


def test_aliases_that_multiply_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="anchor"):
        ServeFile.read("\n".join([*lines, "applications: []"]))
    assert time.monotonic() - begin < 5.0


def test_the_room_imports_fast_and_brings_neither_ray_nor_vllm() -> None:
    code = (
        "import sys, time; begin = time.perf_counter(); import aibrix_ray.config;"
        "print(time.perf_counter() - begin, [m for m in ('ray', 'vllm', 'typer') "
        "if m in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    seconds, _, modules = printed.strip().partition(" ")
    assert modules == "[]"
    assert float(seconds) < 2.0  # measured: 0.15 s; the machine is shared
