"""Tenants, keys and usage as people and programs read them: JSON, CSV, and times in words."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from aibrix_ray.errors import BadRequest
from aibrix_ray.tenants.records import KeyRecord, TenantRecord
from aibrix_ray.tenants.usage_rows import COUNTS, GROUPS

_AGO = re.compile(r"(\d{1,5})([hd])")
_UNITS_S = {"h": 3600, "d": 86_400}


def tenant_data(tenant: TenantRecord) -> dict[str, object]:
    """Return a tenant as JSON has it; times are whole seconds since 1970."""
    return {
        "id": tenant.id,
        "object": "tenant",
        "name": tenant.name,
        "allowed_models": tenant.allowed_models,
        "requests_per_minute": tenant.requests_per_minute,
        "tokens_per_minute": tenant.tokens_per_minute,
        "max_concurrent": tenant.max_concurrent,
        "priority": tenant.priority,
        "slo_tier": tenant.slo_tier,
        "weight": tenant.weight,
        "created": int(tenant.created_s),
    }


def key_data(key: KeyRecord, now_s: float) -> dict[str, object]:
    """Return a key as JSON has it, without its text; times are whole seconds since 1970."""
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": key.tenant,
        "name": key.name,
        "prefix": key.prefix,
        "role": key.role,
        "state": key.state(now_s).value,
        "created": int(key.created_s),
        "expires": _whole(key.expires_s),
        "revoked": _whole(key.revoked_s),
        "last_used": _whole(key.last_used_s),
    }


def parse_groups(text: str, *, param: str) -> tuple[str, ...]:
    """Read `tenant,model`; an empty text groups by nothing.

    Raises:
        BadRequest: a name is unknown, or stands there twice.
    """
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    if set(names) <= GROUPS.keys() and len(set(names)) == len(names):
        return names
    raise BadRequest(f"`{param}` is a list of {', '.join(GROUPS)}, each once", param=param)


def parse_moment(text: str, now_s: float, *, param: str) -> float:
    """Read `2026-11-25`, `2026-11-25T10:00`, or `7d` and `12h` for so long ago; UTC without zone.

    Raises:
        BadRequest: it is none of these.
    """
    if ago := _AGO.fullmatch(text):
        return now_s - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest(
            f"`{param}` is a time such as 2026-11-25, 2026-11-25T10:00Z, 7d or 12h", param=param
        ) from None


def to_csv(rows: Iterable[dict[str, str | int]], groups: Sequence[str]) -> str:
    """Return the rows as CSV (RFC 4180) with a header, also where there are none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*groups, *COUNTS])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
