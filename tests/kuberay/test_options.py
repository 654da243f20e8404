from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.errors import ConfigError
from aibrix_ray.kuberay import RenderOptions, SecretKey, default_image, name_from
from aibrix_ray.kuberay.options import DEFAULT_RAY_VERSION


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"name": ""}, "--name"),
        ({"name": "1a"}, "--name"),
        ({"name": "a_b"}, "--name"),
        ({"name": "a" * 48}, "--name"),
        ({"namespace": "A"}, "--namespace"),
        ({"namespace": ""}, "--namespace"),
        ({"image": ""}, "--image"),
        ({"image": " a"}, "--image"),
        ({"ray_version": "2.60"}, "--ray-version"),
        ({"ray_version": "2.61.0"}, "--ray-version"),
        ({"ray_version": "nightly"}, "--ray-version"),
    ],
)
def test_what_kuberay_would_refuse_is_refused_by_the_flags_name(
    changes: dict[str, Any], flag: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        RenderOptions(**{"name": "llm", "image": "a:b", **changes})
    assert caught.value.path == flag


def test_the_default_version_is_one_that_this_package_runs_on() -> None:
    RenderOptions(name="llm", image=default_image(DEFAULT_RAY_VERSION))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quickstart", "quickstart"),
        ("Two Groups", "two-groups"),
        ("7b_chat.v2", "llm-7b-chat-v2"),
        ("--", "llm"),
        ("a" * 60, "a" * 47),
        ("a" * 46 + "-b", "a" * 46),
    ],
)
def test_a_name_is_made_of_any_text(text: str, expected: str) -> None:
    assert name_from(text) == expected
    RenderOptions(name=name_from(text), image="a:b")


def test_a_secret_is_named_with_or_without_its_key() -> None:
    assert SecretKey.read("hf") == SecretKey("hf", "HF_TOKEN")
    assert SecretKey.read("hf:token") == SecretKey("hf", "token")
    assert SecretKey.read("keys", key="URL") == SecretKey("keys", "URL")


def test_a_url_in_place_of_a_secrets_name_is_refused_and_not_printed() -> None:
    with pytest.raises(ConfigError) as caught:
        SecretKey.read("postgresql://me:hush@host/db", path="--store-secret", key="URL")
    assert caught.value.path == "--store-secret"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("text", ["", ":token", "hf:", "hf:a/b", "hf_TokenItself", "a:b:c"])
def test_what_is_no_secrets_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--hf-token-secret"):
        SecretKey.read(text)
