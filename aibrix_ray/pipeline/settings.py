"""The run-time settings of one model, as the pipeline and whoever drives it know them."""

from __future__ import annotations

from dataclasses import dataclass, field

from aibrix_ray.outliers import OutlierSettings


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The run-time settings of one model; all waits have an end.

    Attributes:
        wait_for_replica_s: how long a request of a model without a ready replica is held.
        first_byte_timeout_s: from sending to the answer's first byte.
        idle_timeout_s: the longest pause within an answer.
        timeout_s: the whole request.
        max_attempts: replicas tried before the first byte.
        retry_after_s: what a 429 or 503 advises.
        resume: a stream whose replica dies goes on at another one.
        max_waiting: requests that may wait at once; 0: none waits.
        max_wait_s: how long a request waits for a place at a replica.
        keep_alive_s: a stream that waits gets a comment so often.
        aging_s: waiting so long counts as one priority more.
        running_factor: requests a replica, as a multiple of those that its engine runs at once.
        hedge_after_s: without a first byte by then a second replica is asked too.
        outliers: when a replica is left out.
    """

    wait_for_replica_s: float = 60.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    timeout_s: float = 3600.0
    max_attempts: int = 3
    retry_after_s: float = 1.0
    resume: bool = True
    max_waiting: int = 1000
    max_wait_s: float = 30.0
    keep_alive_s: float = 10.0
    aging_s: float = 10.0
    running_factor: float | None = None
    hedge_after_s: float | None = None
    outliers: OutlierSettings = field(default_factory=OutlierSettings)
