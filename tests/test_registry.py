from __future__ import annotations

import json

import pytest

from aibrix_ray.errors import ConfigError
from aibrix_ray.registry import Registry


def make_registry() -> Registry[object]:
    registry: Registry[object] = Registry("colour")
    registry.register("red")("r")
    registry.register("green")("g")
    return registry


def test_registering_returns_what_was_registered() -> None:
    registry: Registry[type] = Registry("shape")

    @registry.register("round")
    class Round:
        pass

    assert registry.resolve("round", path="x") is Round
    assert Round.__name__ == "Round"


def test_names_are_listed_in_order() -> None:
    registry = make_registry()
    assert list(registry) == ["green", "red"]
    assert "red" in registry
    assert "blue" not in registry


def test_a_name_is_taken_only_once() -> None:
    with pytest.raises(AssertionError, match="colour 'red' is registered twice"):
        make_registry().register("red")("again")


def test_an_unknown_name_is_refused_with_those_that_are_known_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as refused:
        make_registry().resolve("gren", path="paint.colour")
    assert refused.value.path == "paint.colour"
    assert refused.value.value == "gren"
    assert "a colour: one of green, red" in refused.value.expected
    assert refused.value.hint == "did you mean 'green'?"


def test_a_name_that_is_like_none_has_no_hint() -> None:
    with pytest.raises(ConfigError) as refused:
        make_registry().resolve("zzzz", path="x")
    assert refused.value.hint == ""


def test_an_import_path_is_imported() -> None:
    assert make_registry().resolve("json:dumps", path="x") is json.dumps


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("no.such.module:thing", ModuleNotFoundError),
        ("json:no_such_name", AttributeError),
        ("json:", AttributeError),
    ],
)
def test_an_import_that_fails_names_its_cause(name: str, cause: type[Exception]) -> None:
    with pytest.raises(ConfigError) as refused:
        make_registry().resolve(name, path="paint.colour")
    assert isinstance(refused.value.__cause__, cause)
    assert cause.__name__ in refused.value.hint
    assert "importable colour" in refused.value.expected


def test_an_import_path_without_a_module_is_refused_too() -> None:
    with pytest.raises(ConfigError):
        make_registry().resolve(":thing", path="x")


def test_a_registered_name_wins_over_an_import_path() -> None:
    registry = make_registry()
    registry.register("json:dumps")("ours")
    assert registry.resolve("json:dumps", path="x") == "ours"


def test_two_registries_share_nothing() -> None:
    assert "red" not in Registry[object]("colour")
