"""The one adapter that every engine stands behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aibrix_ray.asgi import AsgiApp
from aibrix_ray.types import ReplicaStats


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """Who the engine is within the installation; goes into its reports."""

    replica_id: str
    group: str
    model: str
    epoch: str


class Engine(Protocol):
    """One engine inside one replica. All methods run on the replica's event loop.

    `openai_app` is the engine's own OpenAI application; it is served on the replica's private
    listener behind the private meta channel, whose usage figures the engine reports by
    `aibrix_ray.engines.meta.record_usage` while a request runs.
    """

    async def start(self) -> None:
        """Load the model; return when the first request could be answered."""
        ...

    def openai_app(self) -> AsgiApp:
        """Return the ASGI application, after `start`."""
        ...

    def stats(self) -> ReplicaStats:
        """Return the figures of now; cheap, called several times a second."""
        ...

    async def check_health(self) -> None:
        """Raise if the engine cannot serve any more; its replica is then replaced."""
        ...

    async def stop(self) -> None:
        """Free everything: processes, shared memory, sockets. May be called twice."""
        ...
