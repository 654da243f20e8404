"""Tenants as gateways see them, without a store."""

from __future__ import annotations

from typing import Any

from aibrix_ray.limits import Limits
from aibrix_ray.tenants import Priority, Tenant


def make_tenant(**fields: Any) -> Tenant:
    """Return a tenant that may do everything; `fields` are different."""
    made: dict[str, Any] = {
        "tenant_id": "tenant_1",
        "name": "acme",
        "allowed_models": None,
        "limits": Limits(),
        "priority": Priority.NORMAL,
        "slo_tier": None,
        "weight": 1.0,
        "key_id": "key_1",
        "is_admin": False,
    }
    return Tenant(**{**made, **fields})
