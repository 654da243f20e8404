"""What a gateway is told: its structure (`args`) and what may change while it runs (`user_config`).

A change of `GatewayArgs` restarts the gateways; `GatewayUserConfig` is applied in place. Knows no
routing policy by name: the policy's own room checks `routing.policy` and `routing.options`.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

from pydantic import Field, model_validator

from aibrix_ray.config.admission import AdmissionConfig, OutlierConfig
from aibrix_ray.config.http import HttpConfig
from aibrix_ray.config.part import DAY_S, Names, Part, refuse
from aibrix_ray.config.tenancy import AuthConfig, LimitsConfig

#: Serve kills a replica that takes longer to stop than it was told. It is told this much more than
#: our own drain timeout, so that the drain ends by itself.
SHUTDOWN_MARGIN_S = 5


class RoutingConfig(Part):
    """Which policy chooses the replica of a request."""

    policy: str = Field(
        default="least-request",
        min_length=1,
        description="Routing policy: a registered name, or an import path `package.module:name`.",
    )
    options: dict[str, Any] = Field(
        default={},
        description="Options of the policy, by name; the policy refuses those it does not know.",
    )


class ModelConfig(Part):
    """How requests for one model are treated. The key of the mapping is the model's name."""

    aliases: Names = Field(
        default=(),
        description="Other names under which clients may ask for this model; unique over models.",
    )
    routing: RoutingConfig | None = Field(
        default=None,
        description="Routing of this model alone; null: the gateway's `routing` applies.",
    )
    wait_for_replica_s: float = Field(
        default=60.0,
        ge=0.0,
        le=DAY_S,
        description="Seconds that a request waits for a first ready replica; 0: refuse at once.",
    )
    first_byte_timeout_s: float = Field(
        default=600.0,
        gt=0.0,
        le=DAY_S,
        description="Seconds from sending a request to a replica until its answer begins.",
    )
    idle_timeout_s: float = Field(
        default=300.0,
        gt=0.0,
        le=DAY_S,
        description="Seconds without a byte of an answer that has begun, then it counts as broken.",
    )
    timeout_s: float = Field(
        default=3600.0,
        gt=0.0,
        le=DAY_S,
        description="Seconds from a request's arrival until its answer must be complete.",
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=20,
        description="Replicas that are tried, one after the other, before the first byte; 1: none "
        "but the first.",
    )
    retry_after_s: float = Field(
        default=1.0,
        gt=0.0,
        le=3600.0,
        description="Seconds in the Retry-After header of an answer that asks to come back later.",
    )
    limits: LimitsConfig = Field(
        default=LimitsConfig(), description="What all clients of this model together may ask for."
    )
    admission: AdmissionConfig = Field(
        default=AdmissionConfig(), description="The queue for requests that find the fleet full."
    )
    outliers: OutlierConfig = Field(
        default=OutlierConfig(), description="When a failing replica is left out."
    )
    hedge_after_s: float | None = Field(
        default=None,
        gt=0.0,
        le=DAY_S,
        description="Seconds without a first byte after which a second replica is asked too and "
        "the first to answer wins; null: never.",
    )
    resume: bool = Field(
        default=True,
        description="true: a stream whose replica dies goes on at another one, where its state "
        "can be carried over.",
    )

    @model_validator(mode="after")
    def _shorter_limits_come_first(self) -> ModelConfig:
        for name in ("wait_for_replica_s", "first_byte_timeout_s", "idle_timeout_s"):
            value = getattr(self, name)
            # A default that is longer than a short timeout_s is harmless; a stated one is a slip.
            if name in self.model_fields_set and value > self.timeout_s:
                raise refuse(
                    (name,),
                    value,
                    expected=f"at most timeout_s ({self.timeout_s:g}), which ends the request",
                    hint=f"lower {name} or raise timeout_s",
                )
        return self


class GatewayArgs(Part):
    """The structure of the gateways of an installation. A change restarts them, one by one."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address that gateways listen on; 0.0.0.0 opens the port to the network, "
        "which needs auth.keys.",
    )
    port: int = Field(
        default=8000,
        ge=1,
        le=65_535,
        description="TCP port of the gateways, shared by all gateways of a node.",
    )
    listen: Literal["own", "serve"] = Field(
        default="own",
        description="own: gateways hold the listening socket themselves; serve: Ray Serve's HTTP "
        "proxy stands in front (slower), at `http_options` and `route_prefix`.",
    )
    per_node: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Gateway processes on each alive node.",
    )
    drain_timeout_s: float = Field(
        default=600.0,
        ge=0.0,
        le=DAY_S,
        description="Seconds that a stopping gateway gives its open requests; 0: none.",
    )
    max_body_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        le=16 * 1024**3,
        description="Largest request body in bytes; a larger one is answered with 413.",
    )
    keep_alive_s: float = Field(
        default=75.0,
        gt=0.0,
        le=3600.0,
        description="Seconds that an idle client connection is kept open.",
    )
    auth: AuthConfig = Field(default=AuthConfig(), description="API keys and limits.")
    http: HttpConfig = Field(default=HttpConfig(), description="The listener.")

    @model_validator(mode="after")
    def _no_open_door_by_accident(self) -> GatewayArgs:
        auth = self.auth
        if not (auth.keys or auth.open_to_network or is_loopback(self.host)):
            raise refuse(
                ("auth", "keys"),
                auth.keys,
                expected=f"true, because others can reach host {self.host}",
                hint="set auth.keys: true and make a key with `aibrix-ray keys create`, or set "
                "auth.open_to_network: true to serve everybody who can reach it",
            )
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> GatewayArgs:
        if self.listen == "own":
            return self
        for name, instead in _OWN_SOCKET_ONLY.items():
            if name in self.model_fields_set:
                raise refuse(
                    (name,),
                    getattr(self, name),
                    expected="no value with listen: serve, where Ray Serve's proxy listens",
                    hint=f"set {instead} at the top of the file, or set listen: own",
                )
        for name in sorted(_LISTENERS_ONLY & self.http.model_fields_set):
            raise refuse(
                ("http", name),
                getattr(self.http, name),
                expected="no value with listen: serve, where Ray Serve's proxy listens",
                hint="remove it, or set listen: own",
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from its own machine only."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() in ("localhost", "localhost.localdomain")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


#: fields that mean nothing when Serve's proxy listens → what means the same there.
_OWN_SOCKET_ONLY = {
    "host": "http_options.host",
    "port": "http_options.port",
    "keep_alive_s": "http_options.keep_alive_timeout_s",
}


#: fields of `http` that speak of a listener of our own.
_LISTENERS_ONLY = {
    "tls",
    "max_connections",
    "max_header_bytes",
    "max_url_bytes",
    "upload_timeout_s",
}


class GatewayUserConfig(Part):
    """What may change while gateways run: applied in place, nothing restarts."""

    routing: RoutingConfig = Field(
        default=RoutingConfig(),
        description="Routing of every model that has none of its own.",
    )
    models: dict[str, ModelConfig] = Field(
        default={},
        description="Settings by model name; a model without an entry has the defaults.",
    )
    user_limits: LimitsConfig = Field(
        default=LimitsConfig(),
        description="What each user of a tenant may ask for (the request's `user` field).",
    )

    @model_validator(mode="after")
    def _each_name_means_one_model(self) -> GatewayUserConfig:
        owner: dict[str, str] = {}
        for model, settings in self.models.items():
            for alias in settings.aliases:
                taken = alias if alias in self.models else owner.get(alias)
                if taken is not None:
                    raise refuse(
                        ("models", model, "aliases"),
                        list(settings.aliases),
                        expected=f"names that are free, but {alias!r} already means {taken!r}",
                        hint=f"remove {alias!r} here or there",
                    )
                owner[alias] = model
        return self
