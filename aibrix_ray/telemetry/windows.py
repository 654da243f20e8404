"""Sliding windows over what replicas report: rates from totals, means of levels. Pure.

Everything is kept as a sum that only grows, one sample a second: tokens since the first report,
and levels integrated over time (a level holds until the next report, at most `HOLD_S`). A window is
then the difference of two samples, whatever its length, and an engine that restarts (new epoch, its
totals begin at zero) adds to its sums instead of breaking them. The first report of a replica is a
baseline: what it counted before is not load of this window. `None` stays `None`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aibrix_ray.types import GroupInfo, ReplicaStats

#: Default window.
WINDOW_S = 30.0
#: Longest window that can be asked for; sums older than this are dropped.
MAX_WINDOW_S = 120.0
#: A level counts until the next report, and no longer than this: a dead replica has no load.
HOLD_S = 3.0
#: Distance of two samples.
SAMPLE_S = 1.0


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """What one replica, or all replicas of a group together, did within a window.

    `replicas` and `draining` count those heard in the last `HOLD_S` (1 or 0 for a replica);
    `running` and `waiting` are their newest levels. `covered_s` is how much of the window has been
    seen: with 0 of it rates and means are `None`, as is every figure that no replica knows. Means
    of a group are means of its sum, except `kv_usage_mean`, a mean over its replicas.
    `epoch_age_s` is the time since the engine's epoch was first heard; `None` for a group.
    """

    name: str
    group: str
    model: str
    window_s: float
    covered_s: float = 0.0
    replicas: int = 0
    draining: int = 0
    running: int = 0
    waiting: int = 0
    replicas_mean: float | None = None
    running_mean: float | None = None
    waiting_mean: float | None = None
    kv_usage_mean: float | None = None
    prompt_tokens_per_s: float | None = None
    generation_tokens_per_s: float | None = None
    requests_per_s: float | None = None
    preemptions_per_s: float | None = None
    prefix_hit_rate: float | None = None
    epoch_age_s: float | None = None


# The sums of a track, by place. Totals first (growth of the engine's counters), then integrals.
_PROMPT, _GENERATION, _REQUESTS, _QUERIES, _HITS, _PREEMPTIONS = range(6)
_RUNNING, _WAITING, _KV, _KV_KNOWN, _HEARD = range(6, 11)
_SUMS = 11


class LoadWindows:
    """Holds the sums of every replica heard within the longest window."""

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def __len__(self) -> int:
        return len(self._tracks)

    def observe(self, stats: ReplicaStats, now_s: float) -> None:
        """Take a replica's newest report; the caller has dropped late and outdated ones."""
        track = self._tracks.get(stats.replica_id)
        if track is None:
            self._tracks[stats.replica_id] = _Track(stats, now_s)
        else:
            track.observe(stats, now_s)

    def prune(self, now_s: float) -> None:
        """Drop replicas that no window reaches any more."""
        horizon_s = now_s - MAX_WINDOW_S
        for replica_id in [r for r, t in self._tracks.items() if t.heard_s < horizon_s]:
            del self._tracks[replica_id]

    def replicas(self, now_s: float, *, window_s: float = WINDOW_S) -> list[LoadWindow]:
        """Return the window of each replica heard within it."""
        return [
            _combine(
                [t],
                now_s,
                window_s,
                name=t.stats.replica_id,
                group=t.stats.group,
                model=t.stats.model,
                epoch_age_s=now_s - t.epoch_since_s,
            )
            for t in self._tracks.values()
            if t.heard_s >= now_s - window_s
        ]

    def groups(
        self, groups: Iterable[GroupInfo], now_s: float, *, window_s: float = WINDOW_S
    ) -> list[LoadWindow]:
        """Return the window of each group; of a group without a replica all figures are `None`.

        Replicas that died within the window still count for what they did in it.
        """
        members: dict[str, list[_Track]] = {g.name: [] for g in groups}
        models = {g.name: g.model for g in groups}
        for track in self._tracks.values():
            if track.heard_s >= now_s - window_s:
                members.setdefault(track.stats.group, []).append(track)
                models.setdefault(track.stats.group, track.stats.model)
        return [
            _combine(tracks, now_s, window_s, name=name, group=name, model=models[name])
            for name, tracks in members.items()
        ]


class _Track:
    """The growing sums of one replica and a sample of them a second."""

    __slots__ = ("_samples", "_sums", "epoch_since_s", "heard_s", "stats")

    def __init__(self, stats: ReplicaStats, now_s: float) -> None:
        self.stats = stats
        self.heard_s = now_s
        self.epoch_since_s = now_s
        self._sums = [0.0] * _SUMS
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque([(now_s, (0.0,) * _SUMS)])

    def observe(self, stats: ReplicaStats, now_s: float) -> None:
        old, sums = self.stats, self._sums
        self._hold(sums, now_s)
        restarted = stats.epoch != old.epoch
        if restarted:
            self.epoch_since_s = now_s
        grown = _grown_since_start if restarted else _grown
        sums[_PROMPT] += grown(old.prompt_tokens_total, stats.prompt_tokens_total)
        sums[_GENERATION] += grown(old.generation_tokens_total, stats.generation_tokens_total)
        sums[_REQUESTS] += grown(old.requests_total, stats.requests_total)
        sums[_QUERIES] += grown(old.prefix_queries_total, stats.prefix_queries_total)
        sums[_HITS] += grown(old.prefix_hits_total, stats.prefix_hits_total)
        sums[_PREEMPTIONS] += grown(old.preemptions_total, stats.preemptions_total)
        self.stats = stats
        self.heard_s = now_s
        if now_s - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now_s, tuple(sums)))
            # The oldest sample kept is the last one at or before the longest window's start.
            while len(self._samples) > 1 and self._samples[1][0] <= now_s - MAX_WINDOW_S:
                self._samples.popleft()

    def window(self, now_s: float, window_s: float) -> tuple[float, list[float]]:
        """Return how much of the window was seen, in seconds, and what the sums grew by in it."""
        start_s = now_s - window_s
        at_s, base = self._samples[0]
        for sample in reversed(self._samples):
            if sample[0] <= start_s:
                at_s, base = sample
                break
        sums = list(self._sums)
        self._hold(sums, now_s)
        seen_s = now_s - at_s
        # A sample before the window's start (long before it, after a pause in the reports) brings
        # growth from outside of it: take the window's share.
        share = window_s / seen_s if seen_s > window_s else 1.0
        grown = [(new - old) * share for new, old in zip(sums, base, strict=True)]
        return min(seen_s, window_s), grown

    def _hold(self, sums: list[float], now_s: float) -> None:
        held_s = min(now_s - self.heard_s, HOLD_S)
        stats = self.stats
        sums[_RUNNING] += stats.running * held_s
        sums[_WAITING] += stats.waiting * held_s
        sums[_HEARD] += held_s
        if stats.kv_usage is not None:
            sums[_KV] += stats.kv_usage * held_s
            sums[_KV_KNOWN] += held_s


def _grown(old: int | None, new: int | None) -> int:
    # Unknown on either side is no growth. A total that went back is an unannounced restart.
    if old is None or new is None:
        return 0
    return new - old if new >= old else new


def _grown_since_start(_old: int | None, new: int | None) -> int:
    return new or 0


def _combine(
    tracks: Sequence[_Track],
    now_s: float,
    window_s: float,
    *,
    name: str,
    group: str,
    model: str,
    epoch_age_s: float | None = None,
) -> LoadWindow:
    assert 0 < window_s <= MAX_WINDOW_S, f"a window of {window_s:g} s is not kept"
    alive = [t for t in tracks if now_s - t.heard_s <= HOLD_S]
    covered_s, sums = _add_up(tracks, now_s, window_s)

    def per_s(place: int) -> float | None:
        return sums[place] / covered_s if covered_s > 0 else None

    return LoadWindow(
        name=name,
        group=group,
        model=model,
        window_s=window_s,
        covered_s=covered_s,
        replicas=len(alive),
        draining=sum(t.stats.draining for t in alive),
        running=sum(t.stats.running for t in alive),
        waiting=sum(t.stats.waiting for t in alive),
        replicas_mean=per_s(_HEARD),
        running_mean=per_s(_RUNNING),
        waiting_mean=per_s(_WAITING),
        kv_usage_mean=sums[_KV] / sums[_KV_KNOWN] if sums[_KV_KNOWN] > 0 else None,
        prompt_tokens_per_s=per_s(_PROMPT),
        generation_tokens_per_s=per_s(_GENERATION),
        requests_per_s=per_s(_REQUESTS),
        preemptions_per_s=per_s(_PREEMPTIONS) if _knows_preemptions(tracks) else None,
        prefix_hit_rate=sums[_HITS] / sums[_QUERIES] if sums[_QUERIES] > 0 else None,
        epoch_age_s=epoch_age_s,
    )


def _add_up(tracks: Sequence[_Track], now_s: float, window_s: float) -> tuple[float, list[float]]:
    covered_s, sums = 0.0, [0.0] * _SUMS
    for track in tracks:
        seen_s, grown = track.window(now_s, window_s)
        covered_s = max(covered_s, seen_s)
        sums = [a + b for a, b in zip(sums, grown, strict=True)]
    return covered_s, sums


def _knows_preemptions(tracks: Sequence[_Track]) -> bool:
    return any(t.stats.preemptions_total is not None for t in tracks)
