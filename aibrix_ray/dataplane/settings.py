"""From the configuration of a model to the settings that the pipeline knows."""

from __future__ import annotations

from aibrix_ray.config import ModelConfig
from aibrix_ray.outliers import OutlierSettings
from aibrix_ray.pipeline import ModelSettings


def model_settings(config: ModelConfig | None) -> ModelSettings:
    """Return the settings of a model; one without a configuration has the defaults."""
    config = config or ModelConfig()
    return ModelSettings(
        wait_for_replica_s=config.wait_for_replica_s,
        first_byte_timeout_s=config.first_byte_timeout_s,
        idle_timeout_s=config.idle_timeout_s,
        timeout_s=config.timeout_s,
        max_attempts=config.max_attempts,
        retry_after_s=config.retry_after_s,
        resume=config.resume,
        hedge_after_s=config.hedge_after_s,
        outliers=OutlierSettings(**config.outliers.model_dump()),
        **config.admission.model_dump(),
    )
