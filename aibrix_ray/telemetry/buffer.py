"""What a node's reporter holds: each replica's newest stats, as bytes, and what is unsent. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aibrix_ray.telemetry.store import REPLICA_TTL_S


class ReportBuffer:
    """Takes stats and groups replica by replica; gives out what Telemetry has not got yet.

    `take` and `give_back` are a pair: what was taken counts as sent unless it is given back.
    """

    def __init__(self) -> None:
        self._stats: dict[str, bytes] = {}
        self._heard_s: dict[str, float] = {}
        self._groups: dict[str, bytes] = {}
        self._unsent: dict[str, None] = {}
        self._groups_unsent = False

    def __len__(self) -> int:
        return len(self._stats)

    def put(self, replica_id: str, stats: bytes, now_s: float) -> None:
        """Take a replica's newest stats, in the place of what it said before."""
        self._stats[replica_id] = stats
        self._heard_s[replica_id] = now_s
        self._unsent[replica_id] = None

    def put_group(self, replica_id: str, group: bytes) -> None:
        """Take the group that a replica belongs to."""
        self._groups[replica_id] = group
        self._groups_unsent = True

    def knows_group(self, replica_id: str) -> bool:
        """Return whether this replica has told its group."""
        return replica_id in self._groups

    def has_unsent(self) -> bool:
        """Return whether there is anything to send."""
        return bool(self._unsent) or self._groups_unsent

    def take(self) -> tuple[list[bytes], list[bytes]]:
        """Return the unsent stats, and all groups (each once) if there is a new one."""
        stats = [self._stats[r] for r in self._unsent]
        groups = list(dict.fromkeys(self._groups.values())) if self._groups_unsent else []
        self._unsent.clear()
        self._groups_unsent = False
        return stats, groups

    def give_back(self) -> None:
        """Make everything unsent: a call failed, or Telemetry has lost its memory."""
        self._unsent = dict.fromkeys(self._stats)
        self._groups_unsent = bool(self._groups)

    def forget_unheard(self, now_s: float) -> None:
        """Drop the replicas that have been silent for as long as Telemetry keeps them."""
        self._drop([r for r, t in self._heard_s.items() if now_s - t > REPLICA_TTL_S])

    def _drop(self, replica_ids: Iterable[str]) -> None:
        for replica_id in replica_ids:
            del self._stats[replica_id], self._heard_s[replica_id]
            self._groups.pop(replica_id, None)
            self._unsent.pop(replica_id, None)
