"""Which replicas of a model are left out because they fail or are stuck.

Outlier ejection judges by what this gateway's own requests met. A replica is out for `ejection_s`,
twice as long each further time in a row; then a single request is sent to it, and how that ends
decides whether it is back or out again (half-open). Never more than `max_ejected_share` of a
model's replicas are out, so a fleet that fails as a whole (a bad model, a bad request) goes on
being asked. When a gateway dies its judgement is lost with it.

A replica that is stuck ends no request, so nothing of the above finds it; `Silence` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from aibrix_ray.types import ReplicaView


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    """When a replica is left out; what the fields mean stands at `config.OutlierConfig`."""

    consecutive_failures: int = 5
    failure_share: float = 0.5
    latency_factor: float | None = None
    min_requests: int = 10
    window_s: float = 30.0
    ejection_s: float = 5.0
    max_ejection_s: float = 120.0
    max_ejected_share: float = 0.5
    silent_s: float | None = 5.0


class _Record:
    """What is known of one replica. The older half of the window is `before`."""

    __slots__ = (
        "before",
        "ejected_until_s",
        "ejections",
        "failed",
        "in_a_row",
        "probing",
        "requests",
        "samples",
        "seconds",
    )

    def __init__(self) -> None:
        self.in_a_row = 0
        self.requests = self.failed = self.samples = 0
        self.seconds = 0.0
        self.before = (0, 0, 0, 0.0)
        self.ejections = 0
        self.ejected_until_s: float | None = None
        self.probing = False

    def turn(self) -> None:
        failed, requests = self.failures
        if requests and not failed and self.ejected_until_s is None:
            self.ejections = 0
        self.before = (self.requests, self.failed, self.samples, self.seconds)
        self.requests = self.failed = self.samples = 0
        self.seconds = 0.0

    def forgive(self) -> None:
        """Forget what it was ejected for, but not how often."""
        self.in_a_row = 0
        self.requests = self.failed = self.samples = 0
        self.seconds = 0.0
        self.before = (0, 0, 0, 0.0)

    @property
    def failures(self) -> tuple[int, int]:
        """Failures and requests of the window."""
        return self.before[1] + self.failed, self.before[0] + self.requests

    def mean_s(self, min_samples: int) -> float | None:
        """Mean time to first byte in the window, or `None` if there were too few."""
        samples = self.before[2] + self.samples
        return (self.before[3] + self.seconds) / samples if samples >= min_samples else None


class Outliers:
    """The judgement over the replicas of one model in one gateway.

    Every method that returns a bool says whether it changed who is out.

    Attributes:
        probes: replicas whose ejection is over and that are to be asked by one request; whoever
            sends it says so with `probe`.
    """

    def __init__(self, settings: OutlierSettings | None = None) -> None:
        self.settings = settings or OutlierSettings()
        self.probes: list[ReplicaView] = []
        self._records: dict[ReplicaView, _Record] = {}
        self._turned_s = float("-inf")
        self._usual_s: float | None = None

    def keep(self, replicas: Iterable[ReplicaView]) -> None:
        """Know these replicas from now on and forget all others."""
        old = self._records
        self._records = {each: old.get(each) or _Record() for each in replicas}
        self.probes = [each for each in self.probes if each in self._records]

    def is_out(self, replica: ReplicaView) -> bool:
        """Return whether a replica is left out, also while its probe is under way."""
        record = self._records.get(replica)
        return record is not None and record.ejected_until_s is not None

    @property
    def out(self) -> int:
        """How many are left out."""
        return sum(r.ejected_until_s is not None for r in self._records.values())

    # How requests ended

    def answered(self, replica: ReplicaView, ttfb_s: float | None = None) -> bool:
        """Note an answer that is not the replica's failure: below 500, and 429 and 4xx too.

        Args:
            replica: who answered.
            ttfb_s: its time to first byte, where that can be compared with others'.
        """
        record = self._records.get(replica)
        if record is None:
            return False
        record.requests += 1
        record.in_a_row = 0
        if ttfb_s is not None:
            record.samples += 1
            record.seconds += ttfb_s
        return record.probing and self._return(record)

    def failed(self, replica: ReplicaView, now_s: float) -> bool:
        """Note a 5xx, a reset, or an answer that did not begin in time."""
        record = self._records.get(replica)
        if record is None:
            return False
        record.requests += 1
        record.failed += 1
        record.in_a_row += 1
        if record.probing:
            return self._eject(record, now_s)
        if record.ejected_until_s is not None:
            return False
        failed, requests = record.failures
        settings = self.settings
        if record.in_a_row >= settings.consecutive_failures or (
            requests >= settings.min_requests and failed >= settings.failure_share * requests
        ):
            return self._eject(record, now_s)
        return False

    def inconclusive(self, replica: ReplicaView) -> None:
        """Note an end that says nothing: the client left. A probe has to be sent again."""
        record = self._records.get(replica)
        if record is not None and record.probing:
            record.probing = False
            self.probes.append(replica)

    def overdue(self, replica: ReplicaView, waited_s: float, now_s: float) -> bool:
        """Note that an answer has not begun for `waited_s`: out, if its siblings are far faster.

        One such request is enough, because a replica that hangs ends none.
        """
        record = self._records.get(replica)
        if record is None or not self.is_overdue(waited_s):
            return False
        if record.ejected_until_s is not None and not record.probing:
            return False
        return self._eject(record, now_s)

    def is_overdue(self, waited_s: float) -> bool:
        """Return whether an answer that has not begun for so long is far slower than usual."""
        factor, usual_s = self.settings.latency_factor, self._usual_s
        return factor is not None and usual_s is not None and waited_s > factor * usual_s

    # Time

    def tick(self, now_s: float) -> bool:
        """Turn the window, judge by latency, and end ejections; a few times a second."""
        if now_s - self._turned_s >= self.settings.window_s / 2:
            self._turned_s = now_s
            for record in self._records.values():
                record.turn()
        for replica, record in self._records.items():
            until_s = record.ejected_until_s
            if until_s is None or now_s < until_s or record.probing or replica in self.probes:
                continue
            self.probes.append(replica)
        return self._judge_latency(now_s)

    def probe(self, replica: ReplicaView) -> None:
        """Note that a replica of `probes` is asked now: by this one request and no other."""
        self.probes.remove(replica)
        self._records[replica].probing = True

    # private

    def _judge_latency(self, now_s: float) -> bool:
        factor = self.settings.latency_factor
        if factor is None:
            return False
        means = [
            (record, mean_s)
            for record in self._records.values()
            if record.ejected_until_s is None
            and (mean_s := record.mean_s(self.settings.min_requests)) is not None
        ]
        # The low one, so that of two replicas the slow one is not compared with itself.
        self._usual_s = median_low([mean_s for _, mean_s in means]) if means else None
        changed = False
        for record, mean_s in means:
            if self._usual_s is not None and mean_s > factor * self._usual_s:
                changed |= self._eject(record, now_s)
        return changed

    def _eject(self, record: _Record, now_s: float) -> bool:
        settings = self.settings
        again = record.ejected_until_s is not None
        if not again and self.out + 1 > settings.max_ejected_share * len(self._records):
            return False
        record.probing = False
        out_s = settings.ejection_s * 2.0 ** min(record.ejections, 64)
        record.ejected_until_s = now_s + min(out_s, settings.max_ejection_s)
        record.ejections += 1
        record.forgive()
        return not again

    def _return(self, record: _Record) -> bool:
        record.probing = False
        record.ejected_until_s = None
        record.forgive()
        return True


class Silence:
    """Finds replicas that show no sign of work while their siblings do.

    A sign is an answer to us, a report of new tokens or requests, or one of having nothing to do.
    Where nobody shows one the fault is not theirs (no reports come, this process was asleep); from
    the first sign after that everybody has the whole time again, because the others' reports may
    still be on their way. A replica that has never reported cannot be judged.
    """

    def __init__(self) -> None:
        self._since_s: float | None = None

    def find(
        self, replicas: Sequence[ReplicaView], silent_s: float, now_s: float
    ) -> list[ReplicaView]:
        """Return those that were silent for `silent_s`; to be called a few times in that time."""
        known = [replica for replica in replicas if replica.stats is not None]
        if all(now_s - replica.progress_s > silent_s / 2 for replica in known):
            self._since_s = None
            return []
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s <= silent_s:
            return []
        return [replica for replica in known if now_s - replica.progress_s > silent_s]
