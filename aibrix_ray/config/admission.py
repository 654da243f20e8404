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
        description="Requests that may wait, for a free place or for a first ready replica; one "
        "more is answered with 429. 0: none waits.",
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
    aging_s: float = Field(
        default=10.0,
        gt=0.0,
        le=DAY_S,
        description="Seconds of waiting that count as one priority more: a request is passed only "
        "by those that arrive within this time for each class between them.",
    )
    running_factor: float | None = Field(
        default=None,
        gt=0.0,
        le=1000.0,
        description="A replica gets at most this many times the requests that its engine runs at "
        "once, as it reports them, and never more than max_outstanding; null: only that counts.",
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
        description="Eject a replica whose mean time to first byte of streams is this many times "
        "the median of its siblings, or that lets one stream wait for so long; null: latency "
        "ejects nobody.",
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
    silent_s: float | None = Field(
        default=5.0,
        gt=0.0,
        le=DAY_S,
        description="Leave a replica out that has neither answered nor reported any progress for "
        "so many seconds while its siblings have (it is stuck); null: never.",
    )
