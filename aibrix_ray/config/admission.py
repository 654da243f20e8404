"""What happens when the fleet is full, and which replicas are left out because they fail."""

from __future__ import annotations

from pydantic import Field

from aibrix_ray.config.part import DAY_S, Part


class AdmissionConfig(Part):
    """The queue of one model in one gateway: requests wait here rather than on a full replica."""

    max_waiting: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Requests that may wait; one more is answered with 429. 0: none waits.",
    )
    max_wait_s: float = Field(
        default=30.0,
        ge=0.0,
        le=DAY_S,
        description="Seconds that a request waits for a free place, then 503.",
    )
    keep_alive_s: float = Field(
        default=10.0,
        gt=0.0,
        le=DAY_S,
        description="Seconds after which a waiting stream is begun with SSE comments, one each "
        "such time, so that no proxy takes it for dead.",
    )


class OutlierConfig(Part):
    """When a replica that answers badly is left out for a while (outlier ejection)."""

    consecutive_failures: int = Field(
        default=5,
        ge=1,
        le=10_000,
        description="Failures in a row (5xx, resets, time-outs; never 4xx) that eject a replica.",
    )
    failure_share: float = Field(
        default=0.5,
        gt=0.0,
        le=1.0,
        description="Share of failures within window_s that ejects, from min_requests on.",
    )
    latency_factor: float | None = Field(
        default=None,
        gt=1.0,
        le=1000.0,
        description="Eject a replica whose mean time to first byte is this many times the median "
        "of its siblings; null: latency ejects nobody.",
    )
    min_requests: int = Field(
        default=10, ge=1, le=1_000_000, description="Requests below which no share is computed."
    )
    window_s: float = Field(
        default=30.0, gt=0.0, le=DAY_S, description="Seconds that are looked back."
    )
    ejection_s: float = Field(
        default=5.0,
        gt=0.0,
        le=DAY_S,
        description="Seconds of a first ejection; each further one in a row takes twice as long.",
    )
    max_ejection_s: float = Field(
        default=120.0, gt=0.0, le=DAY_S, description="The longest ejection in seconds."
    )
    max_ejected_share: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Share of a model's replicas that may be out at once; 0: ejection is off.",
    )
