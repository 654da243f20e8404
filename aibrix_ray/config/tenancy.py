"""Who may use the gateway, and how much: API keys, their store, limits."""

from __future__ import annotations

from pydantic import Field, field_validator

from aibrix_ray.config.part import Part, refuse

_MOST = 1_000_000_000
_REDIS = ("redis://", "rediss://", "unix://")


class LimitsConfig(Part):
    """How much may be asked for; what is null is not limited."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=_MOST, description="Requests a minute; null: no limit."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=_MOST,
        description="Prompt and answer tokens a minute, together; null: no limit.",
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, le=_MOST, description="Requests under way at once; null: no limit."
    )


class AuthConfig(Part):
    """Who may send requests."""

    keys: bool = Field(
        default=False,
        description="true: each request needs an API key (`aibrix-ray keys create`).",
    )
    store: str | None = Field(
        default=None,
        min_length=1,
        description="Where tenants, keys and usage are kept, as an SQLAlchemy URL such as "
        "postgresql://user@host/name. $AIBRIX_RAY_STORE is stronger; without either it is an "
        "SQLite file in this user's state folder. Gateways on several nodes need one that all of "
        "them reach.",
    )
    open_to_network: bool = Field(
        default=False,
        description="true: serve an address that others can reach without asking for keys.",
    )
    limiter: str | None = Field(
        default=None,
        min_length=1,
        description="Where limits are counted for all gateways together: a URL such as "
        "redis://host:6379/0; null: one actor on this Ray cluster.",
    )

    @field_validator("limiter")
    @classmethod
    def _redis_or_nothing(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(_REDIS):
            raise refuse(
                (),
                "a text that is not shown, since it may hold a password",
                expected=f"a URL that begins with {', '.join(_REDIS)}",
                hint="write redis://host:6379/0, or remove it to use an actor on this Ray cluster",
            )
        return url
