"""The life of a request as pure objects: resolve → admit → route → retry.

The gateway drives it with real connections, the simulator with virtual time; both ask
`Life.next` what to do, do it, and say what became of it. Holds no clock and opens no connection.
"""

from aibrix_ray.pipeline.life import MAX_BREAKS, Life, Wait
from aibrix_ray.pipeline.model import STALE_S, ModelState
from aibrix_ray.pipeline.pipeline import Pipeline
from aibrix_ray.pipeline.settings import ModelSettings

__all__ = ["MAX_BREAKS", "STALE_S", "Life", "ModelSettings", "ModelState", "Pipeline", "Wait"]
