"""Serve's door to membership: a request router that routes nothing and reports replica sets.

Serve pickles this whole module by value into every process that holds a handle, so it holds one
class and imports the package only where it runs.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class MembershipRouter(RequestRouter):  # type: ignore[misc]
    """Passes each replica set on to the process-wide hub; falls back to any replica for callers."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Report the ready replicas; called on Serve's router thread."""
        super().update_replicas(replicas)
        from aibrix_ray.deployments.membership import HUB

        HUB.publish(self._deployment_id.app_name, replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return every candidate: only calls by a plain handle come here, never client requests."""
        return [list(candidate_replicas)]
