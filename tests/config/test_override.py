"""Names of flags and variables: what they reach, and that none is silently without effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from aibrix_ray.config import check, effective
from aibrix_ray.errors import ConfigError
from tests.config.files import GROUP, make_file


def problem_of(
    *, text: str, env: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> ConfigError:
    found, problems = check(text, env or {}, flags)
    assert found is None
    return problems[0]


def test_a_variable_names_an_application_with_dashes_and_keys_of_the_file() -> None:
    text = make_file(
        user_config='{models: {meta-llama/Llama-3.1: {aliases: ["x"]}}}',
        group=GROUP.replace("name: tiny", "name: llama-a10"),
        group_args="{model: meta-llama/Llama-3.1, env: {Odd_Name: a}}",
    )
    env = {
        "AIBRIX_RAY__GATEWAY__USER_CONFIG__MODELS__META_LLAMA_LLAMA_3_1__MAX_ATTEMPTS": "1",
        "AIBRIX_RAY__LLAMA_A10__ENV__Odd_Name": "b",
        "AIBRIX_RAY__LLAMA_A10__ENV__NEW": "c",
        "AIBRIX_RAY__LLAMA_A10__ENGINE__ARGS__SEED": "0",
        "AIBRIX_RAY_OTHER": "not ours",
        "aibrix_ray__llama_a10__replicas__max": "2",
    }
    parsed, _ = effective(text, env, ())
    assert parsed.user_config.models["meta-llama/Llama-3.1"].max_attempts == 1
    group = parsed.groups["llama-a10"]
    assert group.env == {"Odd_Name": "b", "NEW": "c"}
    assert group.engine.args == {"seed": 0}  # type: ignore[union-attr]
    assert group.replicas.max == 2


@pytest.mark.parametrize(
    "name",
    ["llama-3.1.max_attempts", '["llama-3.1"].max_attempts', '["llama-3.1"]["max_attempts"]'],
)
def test_a_flag_names_a_key_with_dots(name: str) -> None:
    text = make_file(user_config="{models: {llama-3.1: {}}}", group_args="{model: llama-3.1}")
    dot = "" if name.startswith("[") else "."
    parsed, sources = effective(text, {}, [f"gateway.user_config.models{dot}{name}=1"])
    assert parsed.user_config.models["llama-3.1"].max_attempts == 1
    name = 'gateway.user_config.models["llama-3.1"].max_attempts'
    assert tuple(sources[name]) == (1, "flag")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"AIBRIX_RAY__GATWAY__PORT": "1"}, "did you mean 'gateway'?"),
        ({"AIBRIX_RAY__GATEWAY__PROT": "1"}, "did you mean 'port'?"),
        ({"AIBRIX_RAY__GATEWAY": "1"}, "AIBRIX_RAY__GATEWAY__PORT"),
        ({"AIBRIX_RAY__GATEWAY____PORT": "1"}, "name the field"),
        ({"AIBRIX_RAY__": "1"}, "an aibrix_ray application"),
        ({"AIBRIX_RAY__TINY__USER_CONFIG__ROUTING__POLICY": "x"}, "one of the keys"),
        ({"AIBRIX_RAY__TINY__MODEL__X": "1"}, "set that value as a whole"),
        ({"AIBRIX_RAY__TINY__REPLICAS__MAX__X": "1"}, "an integer"),
        ({"AIBRIX_RAY__GATEWAY__PORT": "[1"}, "expected a YAML value"),
        ({"AIBRIX_RAY__GATEWAY__PORT": ""}, "an integer"),
        ({"AIBRIX_RAY__TINY__LABELS": "{a: b, a: c}"}, "a YAML value"),
    ],
)
def test_a_variable_without_effect_is_an_error_that_names_it(
    env: dict[str, str], told: str
) -> None:
    error = problem_of(text=make_file(), env=env)
    assert next(iter(env)) in error.path
    assert told in str(error)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("gatway.port=1", "did you mean 'gateway'?"),
        ("gateway.prot=1", "did you mean 'port'?"),
        ("gateway.prot.x=1", "did you mean 'port'?"),
        ("other.x=1", "an aibrix_ray application of the file: gateway, tiny"),
        ("gateway.port=[1", "expected a YAML value"),
        ("tiny.model.x=1", "set that value as a whole"),
    ],
)
def test_a_flag_without_effect_is_an_error_that_names_it(flag: str, told: str) -> None:
    other = "- {name: other, import_path: 'm:a'}"
    error = problem_of(text=make_file(more=other), flags=[flag])
    assert f"--set {flag.partition('=')[0]}" in error.path
    assert told in str(error)


@pytest.mark.parametrize(
    "flag", ["", "gateway", "gateway=1", "=1", "gateway.port", "gateway.a[0]=1"]
)
def test_a_flag_of_another_form_is_refused_with_an_example(flag: str) -> None:
    error = problem_of(text=make_file(), flags=[flag])
    assert error.path == "--set"
    assert "gateway.port=9000" in error.hint


@pytest.mark.parametrize(
    "flags",
    [
        ["gateway.port=1", "gateway.port=2"],
        ["tiny.replicas.max=2", "tiny.replicas={min: 0}"],
    ],
)
def test_a_flag_that_a_later_flag_undoes_is_an_error(flags: list[str]) -> None:
    error = problem_of(text=make_file(), flags=flags)
    assert error.path == f"--set {flags[0].partition('=')[0]}"
    assert "has an effect" in error.expected


def test_two_variables_that_are_one_name_are_an_error() -> None:
    env = {"AIBRIX_RAY__GATEWAY__PORT": "1", "AIBRIX_RAY__gateway__port": "2"}
    assert "AIBRIX_RAY__GATEWAY__PORT is the same name" in str(
        problem_of(text=make_file(), env=env)
    )


def test_a_variable_that_could_mean_two_keys_is_an_error() -> None:
    text = make_file(group_args="{model: tiny, labels: {a-b: x, a.b: y}}")
    error = problem_of(text=text, env={"AIBRIX_RAY__TINY__LABELS__A_B": "z"})
    assert "a-b and a.b" in error.expected
    assert "--set" in error.hint
