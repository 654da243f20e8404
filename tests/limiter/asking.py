"""Asks a limiter as the data plane does."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from aibrix_ray.config.gateway import GatewayUserConfig
from aibrix_ray.errors import ApiError
from aibrix_ray.limiter import Admitted, GatewayLimiter
from aibrix_ray.limits import Limits


@dataclass(frozen=True)
class Tenant:
    name: str
    limits: Limits


def tenant(name: str = "acme", **limits: int) -> Tenant:
    return Tenant(name, Limits(**limits))


def user_config(**settings: Any) -> GatewayUserConfig:
    return GatewayUserConfig.model_validate(settings)


async def ask(
    limiter: GatewayLimiter,
    model: str = "m",
    *,
    tenant: Tenant | None = None,
    user: str | None = None,
    prompt_bytes: int = 4,
    max_output: int | None = 0,
    now_s: float | None = None,
) -> Admitted:
    """Reserve, and wait where it must be; raises what a client would be told."""
    request: dict[str, Any] = {
        "tenant": tenant,
        "user": user,
        "prompt_bytes": prompt_bytes,
        "max_output": max_output,
    }
    admitted = limiter.reserve(model, **request, now_s=time.monotonic() if now_s is None else now_s)
    return admitted if admitted is not None else await limiter.wait(model, **request)


async def burst(limiters: list[GatewayLimiter], times: int, **request: Any) -> list[Admitted]:
    """Ask many times at once, at the limiters in turn; return what was admitted."""
    asked = [ask(limiters[i % len(limiters)], **request) for i in range(times)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    for item in found:
        assert isinstance(item, Admitted | ApiError), repr(item)
    return [item for item in found if isinstance(item, Admitted)]
