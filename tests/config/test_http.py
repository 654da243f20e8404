"""What the listener's settings refuse, where, and with which way out."""

from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.config import parse_gateway_args
from aibrix_ray.errors import ConfigError

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a path in an origin": (
        {"cors": {"allow_origins": ["https://a.example", "https://b.example/"]}},
        "args.http.cors.allow_origins[1]",
        "no path",
    ),
    "every origin and one more": (
        {"cors": {"allow_origins": ["*", "https://a.example"]}},
        "args.http.cors.allow_origins[0]",
        "'*' alone",
    ),
    "credentials for everybody": (
        {"cors": {"allow_origins": ["*"], "allow_credentials": True}},
        "args.http.cors.allow_credentials",
        "name the origins",
    ),
    "no origin": ({"cors": {"allow_origins": []}}, "args.http.cors.allow_origins", ""),
    "a network with a host": (
        {"trusted_proxies": ["10.0.0.0/8", "10.0.0.1/8"]},
        "args.http.trusted_proxies[1]",
        "host bits",
    ),
    "a name of a proxy": ({"trusted_proxies": ["lb"]}, "args.http.trusted_proxies[0]", "10.0.0.7"),
    "a target larger than a head": (
        {"max_url_bytes": 100_000},
        "args.http.max_url_bytes",
        "raise max_header_bytes",
    ),
    "a head smaller than a target": (
        {"max_header_bytes": 2048},
        "args.http.max_header_bytes",
        "lower max_url_bytes",
    ),
    "a collector that is no URL": (
        {"tracing": {"otlp_endpoint": "collector:4317"}},
        "args.http.tracing.otlp_endpoint",
        "4317 is another",
    ),
    "a certificate without its key": (
        {"tls": {"cert_file": "/a"}},
        "args.http.tls.key_file",
        "there is no default",
    ),
}


@pytest.mark.parametrize(("http", "path", "hint"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named_with_the_way_out(
    http: dict[str, Any], path: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_gateway_args({"http": http})
    assert refused.value.path == path
    assert hint in str(refused.value)


@pytest.mark.parametrize(
    "http",
    [
        {"tls": {"cert_file": "/a", "key_file": "/b"}},
        {"max_connections": 7},
        {"upload_timeout_s": 7.0},
    ],
)
def test_what_speaks_of_our_own_listener_is_refused_behind_serves_proxy(
    http: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match="set listen: own") as refused:
        parse_gateway_args({"listen": "serve", "http": http})
    assert refused.value.path == f"args.http.{next(iter(http))}"


def test_the_rest_works_behind_serves_proxy_too() -> None:
    http = {"access_log": True, "trusted_proxies": ["127.0.0.1"]}
    assert parse_gateway_args({"listen": "serve", "http": http}).http.access_log


@pytest.mark.parametrize(
    "http",
    [
        {},
        {"cors": {"allow_origins": ["*"]}},
        {"cors": {"allow_origins": ["http://localhost:3000", "app://obsidian.md"]}},
        {"cors": {"allow_origins": ["https://a.example"], "allow_credentials": True}},
        {"trusted_proxies": ["10.0.0.0/8", "::1", "192.0.2.7"]},
        {"max_url_bytes": 40_000},
        {"tracing": {"otlp_endpoint": "https://collector/v1/traces", "sample_ratio": 0.1}},
    ],
)
def test_what_is_right_is_taken(http: dict[str, Any]) -> None:
    parse_gateway_args({"http": http})
