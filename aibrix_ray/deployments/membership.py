"""Which replicas of which group are ready, as Serve's controller tells every handle.

A gateway holds one handle a group. Routing decisions are not Serve's, so a handle is opened only
for the replica sets that its router is given: 0.1 s after ready, 0.5 s after a SIGKILL.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray import serve

from aibrix_ray.dataplane import Address, Member

logger = logging.getLogger(__name__)

#: The one deployment of a replica group's application.
GROUP_DEPLOYMENT = "engine"


class _Hub:
    """Where the routers of this process, each on Serve's thread, meet the gateway's loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[str, Sequence[Any]] = {}
        self._listener: Callable[[str, Sequence[Any]], None] | None = None

    def publish(self, application: str, replicas: Sequence[Any]) -> None:
        """Take in the ready replicas of an application; on any thread."""
        with self._lock:
            self._latest[application] = list(replicas)
            listener = self._listener
        if listener is not None:
            listener(application, replicas)

    def follow(self, listener: Callable[[str, Sequence[Any]], None]) -> None:
        """Be called with every replica set from here on, and with the latest ones now."""
        with self._lock:
            self._listener = listener
            latest = dict(self._latest)
        for application, replicas in latest.items():
            listener(application, replicas)


HUB = _Hub()


class Membership:
    """Follows the groups of an installation and tells `on_members` who is ready.

    When Serve's controller dies, the last known sets stay; they are right until a replica dies,
    which the gateway notices by itself (a refused connection).
    """

    def __init__(self, node_id: str, on_members: Callable[[str, Iterable[Member]], None]) -> None:
        self._node_id = node_id
        self._on_members = on_members
        self._handles: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        HUB.follow(self._publish)

    async def follow_groups(self, names: Iterable[str]) -> None:
        """Open handles for new groups and forget those that have gone."""
        wanted = set(names)
        for name in self._handles.keys() - wanted:
            del self._handles[name]
        for name in wanted - self._handles.keys():
            self._handles[name] = await asyncio.to_thread(_open_handle, name)

    def _publish(self, application: str, replicas: Sequence[Any]) -> None:
        members = [m for m in (self._member(application, r) for r in replicas) if m is not None]
        self._loop.call_soon_threadsafe(self._on_members, application, members)

    def _member(self, application: str, replica: Any) -> Member | None:
        meta = replica.replica_metadata
        if "uds" not in meta:
            logger.warning("replica %s of %s published no address", replica.replica_id, application)
            return None
        local = replica.node_id == self._node_id
        if not local and not meta["port"]:
            return None
        address = (
            Address(uds=meta["uds"])
            if local
            else Address(host=meta["host"], port=meta["port"], token=meta["token"])
        )
        return Member(meta["replica_id"], address, node_id=replica.node_id, epoch=meta["epoch"])


def _open_handle(application: str) -> Any:
    handle = serve.get_deployment_handle(GROUP_DEPLOYMENT, application, _check_exists=False)
    handle._init()  # starts the long poll; without it a handle learns of replicas at its first call
    return handle
