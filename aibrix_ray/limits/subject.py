"""Who is limited and by how much, and how a limit is divided among gateways."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aibrix_ray.config.tenancy import LimitsConfig

MINUTE_S = 60.0


class Kind(StrEnum):
    """The three things that are limited."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one subject may use; `None` is not limited.

    Keep one object a subject: the hot path compares by identity first.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    @classmethod
    def of(cls, config: LimitsConfig) -> Limits:
        """Return the limits that a configuration asks for."""
        return cls(config.requests_per_minute, config.tokens_per_minute, config.max_concurrent)

    def __bool__(self) -> bool:
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.max_concurrent is not None
        )


#: A key such as `tenant:acme`, `tenant:acme/user:bob` or `model:llama`, and its limits.
Subject = tuple[str, Limits]


def lease_size(limit: int, gateways: int) -> int:
    """Return how much of a limit a gateway may hold ahead of its requests.

    It is half of the slice, `limit / (4 * gateways)`; the other half may be spent on credit, before
    the authority has answered.
    """
    return limit // (8 * gateways)


def excess(limit: int, gateways: int) -> int:
    """Return how much more than one authority alone all gateways may admit: a slice a gateway.

    From any moment on, within `t` seconds, at most `limit + limit * t / 60 + excess` is admitted.
    """
    return 2 * gateways * lease_size(limit, gateways)
