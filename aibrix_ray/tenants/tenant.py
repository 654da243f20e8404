"""Whom a request belongs to, as a gateway sees it; and the key that a request brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from aibrix_ray.limits import Limits


class Priority(IntEnum):
    """A tenant's class; where requests wait, the larger one goes first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, and the key by which it came.

    Attributes:
        tenant_id: its identity; a tenant that was deleted and made anew has another.
        name: what people call it; unique, never changes.
        allowed_models: names of models, never aliases; None: every model.
        limits: one object for all keys of a tenant at a gateway, for as long as they are equal.
        priority: a `Priority`.
        slo_tier: free text that policies may read; None: none.
        weight: its share among tenants of its priority, beside their weights.
        key_id: the key that was sent.
        is_admin: the key may use the admin API.
    """

    tenant_id: str
    name: str
    allowed_models: frozenset[str] | None
    limits: Limits
    priority: int
    slo_tier: str | None
    weight: float
    key_id: str
    is_admin: bool

    def may_use(self, model: str) -> bool:
        """Return whether this tenant may use a model, given by its name and not by an alias."""
        return self.allowed_models is None or model in self.allowed_models


def key_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Return the API key of a request: `Authorization: Bearer KEY`, else `x-api-key: KEY`.

    Header names are in lower case, as ASGI has them. Where there are several, the first counts.
    """
    api_key = None
    for name, value in headers:
        if name == b"authorization":
            if value[:7].lower() == b"bearer ":
                return value[7:].strip() or None
        elif name == b"x-api-key" and api_key is None:
            api_key = value.strip() or None
    return api_key
