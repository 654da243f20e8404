"""Whether an engine moves: a health check that looks at its work, not at its process."""

from __future__ import annotations

from aibrix_ray.types import ReplicaStats


class ProgressWatch:
    """Notices an engine that holds requests and makes no progress with any of them.

    Its process may answer every ping meanwhile. A prompt that is computed in one piece makes no
    progress either until it is done, so `stalled_s` has to be longer than the longest of those.
    """

    def __init__(self, stalled_s: float) -> None:
        self._stalled_s = stalled_s
        self._before: ReplicaStats | None = None
        self._moved_s = 0.0

    def check(self, stats: ReplicaStats, now_s: float) -> None:
        """Look at the figures of now; to be called regularly.

        Raises:
            RuntimeError: requests run or wait, and nothing has come of it for `stalled_s`.
        """
        if stats.has_moved(self._before):
            self._before, self._moved_s = stats, now_s
            return
        still_s = now_s - self._moved_s
        if still_s > self._stalled_s:
            raise RuntimeError(
                f"{stats.running} requests run, {stats.waiting} wait, and the engine has made no "
                f"token and ended no request for {still_s:.0f} s"
            )
