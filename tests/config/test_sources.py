"""U62: false, 0 and empty values that were dropped, lists that were joined, options ignored."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml

from aibrix_ray.config import PRECEDENCE, ServeFile, check, effective
from aibrix_ray.errors import ConfigError
from tests.config.files import GROUP, QUICKSTART, make_file

VALUES = ("true", "false", "0", "1", "0.5", "''", "x", "[]", "[a, b]", "{}", "null", "")


def value_of(
    name: str, *, text: str, env: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> tuple[object, str]:
    return tuple(effective(text, env or {}, flags)[1][name])  # type: ignore[return-value]


def problem_of(
    *, text: str, env: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> ConfigError:
    found, problems = check(text, env or {}, flags)
    assert found is None
    return problems[0]


def with_value(text: str, keys: Sequence[str], value: object) -> str:
    """Return the file with an option of one of its applications set in the YAML itself."""
    data = yaml.safe_load(text)
    index = ["gateway", "tiny"].index(keys[0])
    here: Any = data["applications"][index]
    path = ["args", *keys[1:]]
    if keys[1] == "user_config":
        here = here.setdefault("deployments", [{"name": "gateway"}])[0]
        path = list(keys[1:])
    for key in path[:-1]:
        here = here.setdefault(key, {})
    here[path[-1]] = value
    return yaml.safe_dump(data)


def variable(name: str) -> str:
    return "AIBRIX_RAY__" + name.upper().replace(".", "__")


FILES = {
    "vllm": make_file(group_args="{model: tiny}"),
    "simulated": make_file(group_args="{model: tiny, engine: {kind: simulated}}"),
}
OPTIONS = [
    (kind, name)
    for kind, text in FILES.items()
    for name in effective(text, {}, ())[1]
    if kind == "vllm" or ".engine." in name
]


def outcome(text: str, name: str, env: Mapping[str, str], flags: Sequence[str]) -> object:
    """Return the option's value in effect, or what its problem says without the source's name."""
    try:
        return "value", effective(text, env, flags)[1][name].value
    except ConfigError as error:
        path = error.path.rpartition("(")[2].rstrip(")")
        return "problem", path, repr(error.value), error.expected, error.hint
    except KeyError:  # a mapping that is set as a whole has its values one by one
        return "value", {}


@pytest.mark.parametrize(("kind", "name"), OPTIONS)
def test_each_value_means_the_same_in_file_variable_and_flag(kind: str, name: str) -> None:
    text = FILES[kind]
    for written in VALUES:
        meant = yaml.safe_load(written) if written else ""
        in_file = outcome(with_value(text, name.split("."), meant), name, {}, ())
        assert outcome(text, name, {variable(name): written}, ()) == in_file, written
        assert outcome(text, name, {}, [f"{name}={written}"]) == in_file, written
        if isinstance(in_file, tuple) and in_file[0] == "value":
            # Accepted means taken as it is: nothing is dropped, converted or joined.
            kept = in_file[1]
            assert kept == meant, written
            assert isinstance(kept, bool) == isinstance(meant, bool), written
        else:
            assert name.rpartition(".")[2] in str(in_file), written


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("tiny.engine.prefix_caching", "true", "false"),
        ("tiny.engine.enforce_eager", "true", "false"),
        ("tiny.drain_timeout_s", "5", "0"),
        ("tiny.replicas.min", "1", "0"),
        ("tiny.cost_per_hour", "2.5", "0"),
        ("gateway.user_config.routing.options", "{a: 1}", "{}"),
        ("tiny.max_surge_percent", "100", "0"),
        ("tiny.accelerator", "L4", "null"),
    ],
)
def test_a_higher_source_wins_although_its_value_is_false_zero_or_empty(
    name: str, low: str, high: str
) -> None:
    text = with_value(make_file(), name.split("."), yaml.safe_load(low))
    wanted = yaml.safe_load(high)
    assert value_of(name, text=text, flags=[f"{name}={high}"]) == (wanted, "flag")
    assert value_of(name, text=text, env={variable(name): high}) == (wanted, "env")
    other = with_value(text, name.split("."), wanted)
    assert value_of(name, text=other) == (wanted, "file")
    in_all = value_of(name, text=text, env={variable(name): low}, flags=[f"{name}={high}"])
    assert in_all == (wanted, "flag")


def test_all_pairs_of_an_option_in_the_file_and_another_as_flag_keep_both() -> None:
    options = {
        "gateway.port": 9000,
        "gateway.per_node": 1,
        "gateway.user_config.routing.policy": "x",
        "gateway.user_config.models.tiny.aliases": ["a", "b"],
        "gateway.user_config.models.tiny.max_attempts": 1,
        "tiny.replicas.min": 0,
        "tiny.replicas.max": 2,
        "tiny.engine.prefix_caching": False,
        "tiny.engine.args.seed": 0,
        "tiny.env.A": "",
        "tiny.labels.team": "x",
    }
    for (one, first), (two, second) in itertools.permutations(options.items(), 2):
        text = with_value(make_file(), one.split("."), first)
        sources = effective(text, {}, [f"{two}={yaml.safe_dump(second)}"])[1]
        assert tuple(sources[one]) == (first, "file"), (one, two)
        assert tuple(sources[two]) == (second, "flag"), (one, two)


def test_what_serve_gets_has_the_settings_in_it_and_the_file_untouched_elsewhere() -> None:
    text = QUICKSTART.read_text()
    parsed, _ = effective(text, {"AIBRIX_RAY__TINY__NUM_CPUS": "2"}, ["gateway.port=9000"])
    expected = yaml.safe_load(text)
    expected["applications"][0]["args"]["port"] = 9000
    expected["applications"][1]["args"]["num_cpus"] = 2
    assert parsed.to_serve_dict() == expected
    assert ServeFile.read(text).parse().to_serve_dict() == yaml.safe_load(text)


def test_an_option_of_shared_yaml_is_set_in_one_application_only() -> None:
    more = GROUP.replace("name: tiny", "name: tiny-2").replace("{model: tiny}", "*shared")
    text = make_file(group_args="&shared {model: tiny, replicas: {min: 1}}", more=more)
    parsed, _ = effective(text, {}, ["tiny.replicas.max=3"])
    assert [group.replicas.max for group in parsed.groups.values()] == [3, 1]


def test_a_longer_variable_refines_a_shorter_one_and_flags_refine_both() -> None:
    env = {
        "AIBRIX_RAY__TINY__REPLICAS": "{min: 0, max: 3}",
        "AIBRIX_RAY__TINY__REPLICAS__MAX": "4",
        "AIBRIX_RAY__TINY__ENGINE": "{kind: simulated, speed: 2}",
    }
    _, sources = effective(make_file(), env, ["tiny.engine.speed=5", "tiny.engine.startup_s=0"])
    assert tuple(sources["tiny.replicas.min"]) == (0, "env")
    assert tuple(sources["tiny.replicas.max"]) == (4, "env")
    assert tuple(sources["tiny.engine.kind"]) == ("simulated", "env")
    assert tuple(sources["tiny.engine.speed"]) == (5.0, "flag")
    assert tuple(sources["tiny.engine.block_size"]) == (16, "default")


def test_a_mapping_that_is_set_as_a_whole_forgets_the_files_one() -> None:
    text = make_file(group_args="{model: tiny, replicas: {min: 2, max: 4}}")
    _, sources = effective(text, {}, ["tiny.replicas={max: 3}"])
    assert tuple(sources["tiny.replicas.min"]) == (1, "default")
    assert tuple(sources["tiny.replicas.max"]) == (3, "flag")


def test_a_problem_of_the_file_itself_names_no_flag() -> None:
    text = make_file(gateway_args="{port: 0}")
    assert problem_of(text=text, flags=["gateway.per_node=1"]).path == "applications[0].args.port"


def test_every_problem_of_file_variables_and_flags_is_listed() -> None:
    found, problems = check(
        make_file(gateway_args="{prot: 1}"),
        {"AIBRIX_RAY__X__Y": "1"},
        ["tiny.replicas.max=0", "nothing"],
    )
    assert found is None
    assert [problem.path for problem in problems] == [
        "AIBRIX_RAY__X__Y",
        "--set",
        "applications[0].args.prot",
        "--set tiny.replicas.max (applications[1].args.replicas.max)",
    ]


@pytest.mark.parametrize("text", ["", "a: [", "applications: 3", "applications: [3, {name: 4}]"])
def test_a_file_that_cannot_be_read_is_a_problem_and_no_crash(text: str) -> None:
    found, problems = check(text, {"AIBRIX_RAY__GATEWAY__PORT": "1"}, ["gateway.port=1"])
    assert found is None
    assert problems
    with pytest.raises(ConfigError):
        effective(text, {}, ())


def test_precedence_is_told_in_one_sentence() -> None:
    order = [PRECEDENCE.index(word) for word in ("flag", "environment", "file", "default")]
    assert order == sorted(order)
