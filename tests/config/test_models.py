from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from aibrix_ray.config import (
    GatewayArgs,
    GatewayUserConfig,
    GroupArgs,
    ModelConfig,
    ReplicasConfig,
    SimulatedEngineConfig,
    VllmEngineConfig,
    parse_gateway_args,
    parse_gateway_user_config,
    parse_group_args,
)
from aibrix_ray.config.part import Part
from aibrix_ray.errors import ConfigError


def refusal(data: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_group_args({"model": "m", **data})
    return caught.value


def test_the_defaults_are_those_that_the_documentation_tells() -> None:
    gateway = parse_gateway_args({})
    assert (gateway.host, gateway.port, gateway.listen) == ("127.0.0.1", 8000, "own")
    assert gateway.max_body_bytes == 64 * 1024 * 1024
    group = parse_group_args({"model": "m"})
    assert group.engine == VllmEngineConfig()
    assert (group.source, group.accelerator) == (None, None)
    assert parse_gateway_user_config(None) == parse_gateway_user_config({}) == GatewayUserConfig()


def test_the_engine_is_vllm_unless_kind_says_otherwise() -> None:
    assert isinstance(parse_group_args({"model": "m", "engine": {}}).engine, VllmEngineConfig)
    simulated = parse_group_args({"model": "m", "engine": {"kind": "simulated", "speed": 10}})
    assert simulated.engine == SimulatedEngineConfig(speed=10.0)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [({}, (1, 1)), ({"min": 0}, (0, 1)), ({"min": 3}, (3, 3)), ({"min": 0, "max": 4}, (0, 4))],
)
def test_the_most_replicas_default_to_the_fewest_and_at_least_one(
    bounds: dict[str, int], expected: tuple[int, int]
) -> None:
    replicas = ReplicasConfig(**bounds)
    assert (replicas.min, replicas.max) == expected


def test_a_wrong_minimum_is_the_only_problem_told_although_the_maximum_derives_from_it() -> None:
    error = refusal({"replicas": {"min": "two"}})
    assert error.path == "args.replicas.min"


@pytest.mark.parametrize(
    "model", [GatewayArgs, ModelConfig, VllmEngineConfig, SimulatedEngineConfig, GroupArgs]
)
def test_every_field_says_what_it_means(model: type[Part]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_models_are_frozen_and_survive_pickling() -> None:
    group = parse_group_args({"model": "m", "env": {"A": "1"}})
    with pytest.raises(ValidationError):
        group.model = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(group)) == group


def test_an_error_reads_the_same_after_crossing_a_process() -> None:
    error = refusal({"replicas": {"min": None}})
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# U61: an accelerator next to settings for a CPU was ignored, the replica scheduled anywhere.


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"accelerator": "L4", "engine": {"kv_cache_gib": 2}}, "engine.kv_cache_gib"),
        ({"accelerator": "L4", "env": {"VLLM_CPU_KVCACHE_SPACE": "4"}}, "VLLM_CPU_KVCACHE_SPACE"),
        ({"accelerator": "L4", "engine": {"kind": "simulated"}}, "engine.profile: L4"),
    ],
)
def test_an_accelerator_with_cpu_settings_names_both_fields_and_two_ways_out(
    data: dict[str, Any], named: str
) -> None:
    error = refusal(data)
    assert error.path == "args.accelerator"
    assert named in str(error)
    assert ", or " in error.hint


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"tensor_parallel": 2}, "args.tensor_parallel"),
        ({"pipeline_parallel": 2}, "args.pipeline_parallel"),
        ({"tensor_parallel": 2, "engine": {"kind": "simulated"}}, "args.tensor_parallel"),
        ({"engine": {"gpu_memory_utilization": 0.5}}, "args.engine.gpu_memory_utilization"),
    ],
)
def test_what_needs_an_accelerator_is_refused_without_one(data: dict[str, Any], path: str) -> None:
    error = refusal(data)
    assert error.path == path
    assert "accelerator" in str(error)
    assert ", or " in error.hint


@pytest.mark.parametrize(
    "data",
    [
        {"engine": {"kv_cache_gib": 2, "dtype": "float32"}},
        {"accelerator": "L4", "engine": {"dtype": "float32"}},
        {"accelerator": "L4", "engine": {"gpu_memory_utilization": 0.9}, "tensor_parallel": 4},
        {"env": {"VLLM_CPU_KVCACHE_SPACE": "4"}},
        {"engine": {"kind": "simulated", "profile": "L4"}},
    ],
)
def test_settings_that_suit_the_hardware_are_accepted(data: dict[str, Any]) -> None:
    assert parse_group_args({"model": "m", **data}).model == "m"


def test_the_kv_cache_of_a_cpu_is_set_in_one_place_only() -> None:
    error = refusal({"engine": {"kv_cache_gib": 2}, "env": {"VLLM_CPU_KVCACHE_SPACE": "4"}})
    assert error.path == "args.env.VLLM_CPU_KVCACHE_SPACE"
    assert "engine.kv_cache_gib (2)" in str(error)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("model", "args.source"),
        ("served_model_name", "args.model"),
        ("tensor_parallel_size", "args.tensor_parallel"),
        ("pipeline_parallel_size", "args.pipeline_parallel"),
        ("max_model_len", "engine.max_model_len"),
        ("max-model-len", "engine.max_model_len"),
        ("--enable-prefix-caching", "engine.prefix_caching"),
        ("tool_call_parser", "engine.tool_parser"),
        ("host", "args.host"),
        ("port", "args.port"),
        ("uds", "private socket"),
        ("api_key", "gateway"),
    ],
)
def test_an_engine_argument_with_a_field_of_its_own_is_refused(name: str, instead: str) -> None:
    error = refusal({"engine": {"args": {name: 1}}})
    assert error.path == f"args.engine.args.{name}"
    assert instead in error.hint


def test_other_engine_arguments_pass_as_they_are_and_dashes_are_refused() -> None:
    args = {"seed": 0, "async_scheduling": False, "limit_mm_per_prompt": {"image": 0}, "x": []}
    group = parse_group_args({"model": "m", "engine": {"args": args}})
    assert isinstance(group.engine, VllmEngineConfig)
    assert group.engine.args == args
    assert "'swap_space'" in refusal({"engine": {"args": {"swap-space": 1}}}).hint


def test_a_simulated_sequence_must_fit_into_the_kv_cache() -> None:
    error = refusal({"engine": {"kind": "simulated", "kv_blocks": 10, "max_model_len": 161}})
    assert "160 tokens" in error.expected
    fits = {"kind": "simulated", "kv_blocks": 10, "max_model_len": 160}
    assert parse_group_args({"model": "m", "engine": fits}).engine.kind == "simulated"


@pytest.mark.parametrize("name", ["host", "port", "keep_alive_s"])
def test_socket_settings_are_refused_where_serve_listens(name: str) -> None:
    value = getattr(GatewayArgs(), name)  # although it is the default
    with pytest.raises(ConfigError, match=r"http_options\.") as caught:
        parse_gateway_args({"listen": "serve", name: value})
    assert caught.value.path == f"args.{name}"


def test_a_limit_longer_than_the_whole_request_is_refused_only_when_stated() -> None:
    parse_gateway_user_config({"models": {"m": {"timeout_s": 10}}})
    with pytest.raises(ConfigError, match="timeout_s") as caught:
        parse_gateway_user_config({"models": {"m": {"timeout_s": 10, "idle_timeout_s": 11}}})
    assert caught.value.path == "user_config.models.m.idle_timeout_s"


@pytest.mark.parametrize(
    "models",
    [
        {"a": {"aliases": ["x"]}, "b": {"aliases": ["x"]}},
        {"a": {}, "b": {"aliases": ["a"]}},
        {"b": {"aliases": ["b"]}},
        {"b": {"aliases": ["x", "x"]}},
    ],
)
def test_a_name_means_one_model(models: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="already means") as caught:
        parse_gateway_user_config({"models": models})
    assert caught.value.path == "user_config.models.b.aliases"


def test_the_path_of_the_caller_stands_first() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_group_args({"model": ""}, path="applications[1].args")
    assert caught.value.path == "applications[1].args.model"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.7", "fe80::1", "node-7", "::ffff:10.0.0.1"]
)
def test_a_gateway_that_others_can_reach_needs_keys_or_a_word(host: str) -> None:
    with pytest.raises(
        ConfigError, match=r"auth\.keys: true.*auth\.open_to_network: true"
    ) as caught:
        parse_gateway_args({"host": host})
    assert caught.value.path == "args.auth.keys"
    assert host in caught.value.expected
    assert parse_gateway_args({"host": host, "auth": {"keys": True}}).auth.keys
    assert parse_gateway_args({"host": host, "auth": {"open_to_network": True}}).host == host


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_a_gateway_on_the_loopback_needs_no_keys(host: str) -> None:
    assert not parse_gateway_args({"host": host}).auth.keys
