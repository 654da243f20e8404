"""What may be asked for: the bodies of the admin API, which the command line fills in too."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from aibrix_ray.config.part import Part
from aibrix_ray.config.tenancy import LimitsConfig

YEAR_S = 366 * 86_400

#: Goes into paths, metrics and CSV as it is.
TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
#: No control characters: it is printed in tables and logs.
_Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
_Model = Annotated[_Line, Field(min_length=1, max_length=256)]
_Models = Annotated[tuple[_Model, ...], Field(strict=False, max_length=1000)]
PriorityName = Literal["high", "normal", "low"]


class TenantSettings(LimitsConfig):
    """What a tenant may do. In a change, only the fields that are given count."""

    allowed_models: _Models | None = Field(
        default=None, description="Names of models that it may use; null: every model."
    )
    priority: PriorityName = Field(
        default="normal", description="Class of its requests where requests wait."
    )
    slo_tier: Annotated[_Line, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Service level, a free text that policies may read."
    )
    weight: float = Field(
        default=1.0,
        gt=0.0,
        le=1e6,
        description="Its share among the tenants of its class, beside their weights.",
    )


class NewTenant(TenantSettings):
    """A tenant to be made."""

    name: TenantName = Field(description="Unique; letters, digits, dots, dashes, underscores.")


class NewKey(Part):
    """A key to be made."""

    tenant: TenantName = Field(description="Name of the tenant that the key belongs to.")
    name: Annotated[_Line, Field(max_length=100)] = Field(
        default="", description="What it is for; shown in lists."
    )
    role: Literal["user", "admin"] = Field(
        default="user", description="admin: it may also use /admin/v1/."
    )
    expires_in_s: int | None = Field(
        default=None, ge=1, le=100 * YEAR_S, description="Seconds that it works; null: for ever."
    )


class Rotation(Part):
    """How a key gives way to a new one."""

    grace_s: int = Field(
        default=3600, ge=0, le=YEAR_S, description="Seconds that the old key goes on working."
    )
