"""How an engine behaves in time: batch times, KV blocks, the scheduler, known accelerators.

Pure: no Ray, no clock, no I/O. The simulated engine drives it in real time, a simulator in virtual
time; optimizer and admission ask it how long a batch takes.
"""

from aibrix_ray.engine_model.accelerators import (
    AcceleratorProfile,
    accelerator_names,
    accelerator_profile,
)
from aibrix_ray.engine_model.batch_time import BatchTimeModel, attention_work
from aibrix_ray.engine_model.blocks import (
    BlockCache,
    Lease,
    block_hashes,
    chain_hash,
    root_hash,
)
from aibrix_ray.engine_model.request import EngineRequest, Phase
from aibrix_ray.engine_model.scheduler import Scheduler, SchedulerLimits, SchedulerTotals
from aibrix_ray.engine_model.step import Step, StepEvents

__all__ = [
    "AcceleratorProfile",
    "BatchTimeModel",
    "BlockCache",
    "EngineRequest",
    "Lease",
    "Phase",
    "Scheduler",
    "SchedulerLimits",
    "SchedulerTotals",
    "Step",
    "StepEvents",
    "accelerator_names",
    "accelerator_profile",
    "attention_work",
    "block_hashes",
    "chain_hash",
    "root_hash",
]
