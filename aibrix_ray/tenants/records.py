"""What the store gives back, as plain data. Times are seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KeyState(StrEnum):
    """What has become of a key."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant as it is stored."""

    id: str
    name: str
    allowed_models: tuple[str, ...] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    priority: str
    slo_tier: str | None
    weight: float
    created_s: float


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is stored, without its hash. `tenant` is the tenant's name."""

    id: str
    tenant: str
    name: str
    prefix: str
    role: str
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    last_used_s: float | None

    def state(self, now_s: float) -> KeyState:
        """Return what has become of it."""
        if self.revoked_s is not None:
            return KeyState.REVOKED
        expired = self.expires_s is not None and self.expires_s <= now_s
        return KeyState.EXPIRED if expired else KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key that was just made; the only time that its text is seen."""

    record: KeyRecord
    key: str

    def __repr__(self) -> str:
        return f"IssuedKey({self.record.id})"


@dataclass(frozen=True, slots=True)
class FoundKey:
    """What a gateway needs of a key: its digest, its end, and whose it is."""

    digest: bytes
    key_id: str
    is_admin: bool
    expires_s: float | None
    tenant: TenantRecord


@dataclass(frozen=True, slots=True)
class UsageKey:
    """What usage is counted by. `tenant` is a name, `adapter` is empty where there was none."""

    hour_s: int
    tenant: str
    key_id: str
    model: str
    adapter: str


@dataclass(slots=True)
class UsageCounts:
    """What was used. `cached_tokens` are part of `prompt_tokens`."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
