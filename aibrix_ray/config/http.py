"""How the gateway's listener treats connections: TLS, CORS, proxies, sizes, logs and traces."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from aibrix_ray.config.part import DAY_S, Names, Part, refuse

#: What a browser puts into `Origin`: never a path, never a slash at the end.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+").fullmatch

_Text = Annotated[str, StringConstraints(min_length=1)]


class TlsConfig(Part):
    """The listener's certificate; both files are read again when they change."""

    cert_file: _Text = Field(description="Path of the certificate chain, PEM.")
    key_file: _Text = Field(description="Path of its private key, PEM.")


class CorsConfig(Part):
    """Which web pages of other origins may call the gateway from a browser."""

    allow_origins: Names = Field(
        min_length=1,
        description="Origins such as https://chat.example.com; '*' alone: every one.",
    )
    allow_credentials: bool = Field(
        default=False, description="true: browsers may send cookies and stored credentials."
    )
    max_age_s: int = Field(
        default=600, ge=0, le=int(DAY_S), description="Seconds that a browser keeps the answer."
    )

    @model_validator(mode="after")
    def _origins_are_origins(self) -> CorsConfig:
        for index, origin in enumerate(self.allow_origins):
            if origin == "*" and len(self.allow_origins) == 1:
                if self.allow_credentials:
                    raise refuse(
                        ("allow_credentials",),
                        True,
                        expected="false where every origin is allowed",
                        hint="name the origins whose pages may use a browser's credentials",
                    )
            elif not _ORIGIN(origin):
                raise refuse(
                    ("allow_origins", index),
                    origin,
                    expected="an origin such as https://chat.example.com, or '*' alone",
                    hint="an origin has a scheme, a host and perhaps a port, and no path",
                )
        return self


class TracingConfig(Part):
    """OpenTelemetry spans of gateway requests (W3C trace context goes through in any case)."""

    otlp_endpoint: _Text = Field(
        description="OTLP/HTTP collector, such as http://localhost:4318/v1/traces."
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Share of requests without a trace of their own that begin one.",
    )

    @model_validator(mode="after")
    def _endpoint_is_a_url(self) -> TracingConfig:
        if not self.otlp_endpoint.startswith(("http://", "https://")):
            raise refuse(
                ("otlp_endpoint",),
                self.otlp_endpoint,
                expected="a URL such as http://localhost:4318/v1/traces",
                hint="traces leave by OTLP over HTTP; gRPC's port 4317 is another one",
            )
        return self


class HttpConfig(Part):
    """The listener of the gateways."""

    tls: TlsConfig | None = Field(default=None, description="TLS; null: plain HTTP.")
    cors: CorsConfig | None = Field(default=None, description="CORS; null: none.")
    trusted_proxies: Names = Field(
        default=(),
        description="Addresses or networks (10.0.0.0/8) whose X-Forwarded-For is believed.",
    )
    max_connections: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Open client connections of one gateway; one more is answered with 503.",
    )
    max_header_bytes: int = Field(
        default=64 * 1024,
        ge=1024,
        le=16 * 1024**2,
        description="Largest head of a request in bytes, its target included (431).",
    )
    max_url_bytes: int = Field(
        default=16 * 1024,
        ge=256,
        le=16 * 1024**2,
        description="Longest target of a request in bytes (414).",
    )
    upload_timeout_s: float = Field(
        default=60.0,
        gt=0.0,
        le=DAY_S,
        description="Longest pause within a request's head or body (408).",
    )
    access_log: bool = Field(
        default=False,
        description="true: one JSON line a request, without prompts or keys, by the logger "
        "aibrix_ray.access.",
    )
    tracing: TracingConfig | None = Field(
        default=None, description="OpenTelemetry tracing; null: none."
    )

    @model_validator(mode="after")
    def _limits_fit_each_other(self) -> HttpConfig:
        if self.max_url_bytes > self.max_header_bytes:
            name = "max_url_bytes" if "max_url_bytes" in self.model_fields_set else ""
            raise refuse(
                (name or "max_header_bytes",),
                self.max_url_bytes if name else self.max_header_bytes,
                expected="max_url_bytes at most max_header_bytes, which counts the target too",
                hint="raise max_header_bytes or lower max_url_bytes",
            )
        return self

    @model_validator(mode="after")
    def _proxies_are_networks(self) -> HttpConfig:
        for index, proxy in enumerate(self.trusted_proxies):
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise refuse(
                    ("trusted_proxies", index),
                    proxy,
                    expected="an address (10.0.0.7) or a network (10.0.0.0/8)",
                    hint=str(error),
                ) from None
        return self
