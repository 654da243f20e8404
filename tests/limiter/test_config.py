"""What is said of limits that are written wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.config.parse import parse_gateway_args, parse_gateway_user_config
from aibrix_ray.errors import ConfigError


@pytest.mark.parametrize("url", ["localhost:6379", "http://:hunter2@host", "postgresql://x/y", ""])
def test_a_limiter_that_is_no_redis_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.limiter") as caught:
        parse_gateway_args({"auth": {"limiter": url}})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://:p@h/1", "unix:///run/redis.sock"])
def test_a_redis_is_taken(url: str) -> None:
    assert parse_gateway_args({"auth": {"limiter": url}}).auth.limiter == url


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"user_limits": {"requests_per_minute": 0}}, "user_limits.requests_per_minute"),
        ({"user_limits": {"tokens_per_minute": -1}}, "user_limits.tokens_per_minute"),
        ({"user_limits": {"max_concurrent": 1.5}}, "user_limits.max_concurrent"),
        ({"user_limits": {"rpm": 5}}, "user_limits.rpm"),
        ({"models": {"m": {"limits": {"max_concurrent": "4"}}}}, "models.m.limits.max_concurrent"),
    ],
)
def test_a_wrong_limit_is_named_by_its_field(settings: Any, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_gateway_user_config(settings)
    assert field in str(caught.value)
