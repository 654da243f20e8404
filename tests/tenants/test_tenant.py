"""A tenant as a gateway sees it, and the key that a request brings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aibrix_ray.tenants import NewKey, NewTenant, Priority, TenantSettings, key_of
from tests.tenants.tenants import make_tenant


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"bearer  k ")], b"k"),
        ([(b"x-api-key", b"k")], b"k"),
        ([(b"x-api-key", b"a"), (b"authorization", b"Bearer b")], b"b"),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], b"a"),
        ([(b"x-api-key", b"a"), (b"x-api-key", b"b")], b"a"),
        ([(b"authorization", b"Basic eDp5"), (b"x-api-key", b"k")], b"k"),
        ([(b"authorization", b"Basic eDp5")], None),
        ([(b"authorization", b"Bearer"), (b"x-api-key", b" ")], None),
        ([(b"authorization", b"Bearer  ")], None),
        ([(b"user", b"k"), (b"x-tenant", b"k"), (b"api-key", b"k")], None),
    ],
)
def test_the_key_is_the_bearer_token_or_x_api_key(
    headers: list[tuple[bytes, bytes]], expected: bytes | None
) -> None:
    assert key_of(headers) == expected


_NAMES = st.sampled_from([b"authorization", b"x-api-key", b"cookie"])


@given(st.lists(st.tuples(_NAMES, st.binary(max_size=40))))
def test_any_headers_are_read(headers: list[tuple[bytes, bytes]]) -> None:
    key = key_of(headers)
    assert key is None or any(key in value for _, value in headers)


def test_no_list_of_models_is_every_model_and_an_empty_one_is_none() -> None:
    assert make_tenant(allowed_models=None).may_use("m")
    assert not make_tenant(allowed_models=frozenset()).may_use("m")
    assert make_tenant(allowed_models=frozenset({"m"})).may_use("m")


def test_a_higher_class_is_a_larger_number() -> None:
    assert Priority.HIGH > Priority.NORMAL > Priority.LOW


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a\n", "ä", "a" * 65, "..", "{a}"])
def test_a_name_that_does_not_fit_into_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        NewTenant(name=name)


@pytest.mark.parametrize("name", ["a", "Acme-2", "team.a_b", "0", "a" * 64])
def test_a_name_is_made_of_letters_digits_dots_dashes_and_underscores(name: str) -> None:
    assert NewTenant(name=name).name == name


@pytest.mark.parametrize(
    "fields",
    [{"weight": 0.0}, {"weight": float("nan")}, {"priority": "urgent"}, {"slo_tier": ""},
     {"requests_per_minute": 0}, {"requests_per_minute": "5"}, {"allowed_models": "m"},
     {"allowed_models": [""]}, {"allowed_models": ["a\0"]}, {"rpm": 5}],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TenantSettings.model_validate(fields)


@pytest.mark.parametrize(
    "fields", [{"name": "a\n"}, {"name": "x" * 101}, {"role": "root"}, {"expires_in_s": 0}]
)
def test_a_key_that_cannot_be_meant_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NewKey.model_validate({"tenant": "a", **fields})
