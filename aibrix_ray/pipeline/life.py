"""One request, from its arrival to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aibrix_ray.admission import Ticket
from aibrix_ray.errors import (
    DeadlineExceeded,
    NoReplica,
    Overloaded,
    QueueTimeout,
    ReplicaFailed,
)
from aibrix_ray.pipeline.model import ModelState
from aibrix_ray.types import Ending, Outcome, ReplicaView, RequestView, Usage, Verdict

#: How many replicas may die under one request after it had made progress there.
MAX_BREAKS = 5

_BYTES_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Wait:
    """No replica may take the request now; it waits, at most until `until_s`.

    Attributes:
        until_s: then it has waited in vain; ask again, for the reason.
        aside: no place of the fleet as it is would do; wait for the fleet to change.
    """

    until_s: float
    aside: bool = False


class Life:
    """One request from its arrival to its end. Not shared between requests.

    Attributes:
        attempts: how many of `max_attempts` are spent.
        sent: how often it was sent to a replica, whatever became of it.
        replica_id: who was asked last; "" before the first.
        usage: what the engine counted; None until that is known, and where nothing was.
        answer_headers: what the answer's head says beside the replica's headers.
    """

    __slots__ = (
        "_breaks",
        "_last_error",
        "_ticket",
        "_tried",
        "_waiting_since_s",
        "answer_headers",
        "arrived_s",
        "attempts",
        "model",
        "replica_id",
        "request",
        "sent",
        "usage",
    )

    def __init__(self, model: ModelState, request: RequestView, now_s: float) -> None:
        self.model = model
        self.request = request
        self.arrived_s = now_s
        self.attempts = self.sent = 0
        self.replica_id = ""
        self.usage: Usage | None = None
        self.answer_headers: Sequence[tuple[bytes, bytes]] = ()
        self._tried: list[str] = []
        self._breaks = 0
        self._last_error = ""
        self._waiting_since_s: float | None = None
        self._ticket: Ticket | None = None

    def next(self, now_s: float) -> ReplicaView | Wait:
        """Return the replica to send to, or how long to wait for one.

        Raises:
            Overloaded: every ready replica is full and nobody may wait, or the policy rejects.
            QueueTimeout: none had a place within `max_wait_s`.
            NoReplica: none became ready within `wait_for_replica_s`.
            ReplicaFailed: `max_attempts` replicas failed before their first byte.
            DeadlineExceeded: the request's own deadline has passed.
        """
        model = self.model
        if self.attempts >= model.settings.max_attempts:
            raise ReplicaFailed(
                f"{self.attempts} replicas of `{model.name}` failed under this request; "
                f"the last one: {self._last_error}"
            )
        if model.queue.line and not self._has_turn():
            return self._wait(now_s, full=True)
        if model.outliers.probes and not self._tried:
            probe = model.outliers.probes[0]
            if probe.load < probe.max_outstanding:
                model.outliers.probe(probe)
                return self._send(probe)
        ready: Sequence[ReplicaView] = model.ready
        if self._tried:
            ready = self._untried(ready) or self._untried(model.spare)
        if not ready:
            return self._wait(now_s, aside=bool(model.ready))
        return self._choose(ready, now_s)

    def hedge(self, first: ReplicaView, now_s: float) -> ReplicaView | None:
        """Return a second replica to ask beside `first`, which is slow, or `None`.

        Never one that requests wait for: a full fleet is slow, and would be slower for it.
        """
        if self.model.queue.line:
            return None
        others = [r for r in self._untried(self.model.ready) if r is not first and has_place(r)]
        if not others:
            return None
        return self.model.policy.choose(self.request, others, now_s).replica

    def may_move(self, replica: ReplicaView) -> bool:
        """Return whether another could be asked if this replica were given up."""
        if self.attempts >= self.model.settings.max_attempts:
            return False
        return any(r is not replica for r in self._untried(self.model.ready))

    # Waiting

    def ticket(self, wait: Wait, holder: object) -> Ticket:
        """Return what stands for this request in the queue."""
        request = self.request
        return Ticket(
            arrived_s=self.arrived_s,
            deadline_s=min(wait.until_s, self.arrived_s + self.model.settings.timeout_s),
            tenant=request.tenant,
            priority=request.priority,
            expected_tokens=len(request.prompt) // _BYTES_A_TOKEN + (request.max_tokens or 0),
            holder=holder,
        )

    def admit(self, ticket: Ticket) -> None:
        """Say that a place was promised to this request; it is taken by the next `next`."""
        self._ticket = ticket

    # What became of an attempt

    def failed(self, replica: ReplicaView, reason: str) -> None:
        """Say that an attempt failed before its first byte; the next one goes elsewhere."""
        self._tried.append(replica.replica_id)
        self._last_error = reason

    def broke(self, replica: ReplicaView, reason: str) -> None:
        """Say that an answer broke after it had made progress and is continued elsewhere.

        What was received cannot be lost any more, so the attempts are counted anew; but a request
        that is the death of its replicas must not go through the whole fleet (`MAX_BREAKS`).
        """
        self._breaks += 1
        self.attempts = 0 if self._breaks <= MAX_BREAKS else self.model.settings.max_attempts
        self._tried.append(replica.replica_id)
        self._last_error = reason

    def refused(self, replica: ReplicaView) -> None:
        """Say that a replica refused because it drains: no attempt was spent."""
        self.attempts -= 1
        self._tried.append(replica.replica_id)

    def ended(
        self,
        replica: ReplicaView,
        ending: Ending,
        *,
        now_s: float,
        status: int = 0,
        ttft_s: float | None = None,
        e2e_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Say how an attempt ended; the policy learns from it, and who fails is left out."""
        model = self.model
        self.usage = usage or self.usage
        changed = False
        if ending is Ending.COMPLETED or ending is Ending.CLIENT_ERROR:
            replica.progress_s = now_s
            # A plain answer's first byte comes with its last, so only streams are compared.
            changed = model.outliers.answered(replica, ttft_s if self.request.stream else None)
        elif ending is Ending.FAILED:
            changed = model.outliers.failed(replica, now_s)
        else:
            model.outliers.inconclusive(replica)
        if changed:
            model.sort()
        model.policy.observe(
            Outcome(
                request_id=self.request.request_id,
                model=model.name,
                replica_id=replica.replica_id,
                ending=ending,
                status=status,
                ttft_s=ttft_s,
                e2e_s=e2e_s,
                usage=usage,
            )
        )

    # private

    def _has_turn(self) -> bool:
        """Return whether it goes before those who wait: promised a place, or on its way already."""
        if self._ticket is None:
            return self.attempts > 0 or bool(self._tried)
        self.model.queue.settle(self._ticket)
        self._ticket = None
        return True

    def _untried(self, replicas: Sequence[ReplicaView]) -> list[ReplicaView]:
        return [r for r in replicas if r.replica_id not in self._tried]

    def _choose(
        self, ready: Sequence[ReplicaView], now_s: float, *, unfilled: bool = False
    ) -> ReplicaView | Wait:
        decision = self.model.policy.choose(self.request, ready, now_s)
        if decision.verdict is Verdict.SEND:
            replica = decision.replica
            assert replica is not None, "a policy said SEND without a replica"
            if unfilled or replica.load < replica.max_outstanding:
                return self._send(replica)
            return self._choose_unfilled(ready, now_s)
        if decision.verdict is Verdict.QUEUE:
            return self._wait(now_s, aside=True)
        raise Overloaded(decision.reason, retry_after_s=self.model.settings.retry_after_s)

    def _choose_unfilled(self, ready: Sequence[ReplicaView], now_s: float) -> ReplicaView | Wait:
        unfilled = [r for r in ready if has_place(r)] or self._untried(self.model.trials())
        if unfilled:
            return self._choose(unfilled, now_s, unfilled=True)
        if self.model.settings.max_waiting:
            return self._wait(now_s, full=True)
        raise Overloaded(
            f"all {len(ready)} ready replicas of `{self.model.name}` are full",
            retry_after_s=self.model.settings.retry_after_s,
        )

    def _send(self, replica: ReplicaView) -> ReplicaView:
        self.attempts += 1
        self.sent += 1
        self.replica_id = replica.replica_id
        self._waiting_since_s = None
        return replica

    def _wait(self, now_s: float, *, full: bool = False, aside: bool = False) -> Wait:
        settings = self.model.settings
        if now_s >= self.arrived_s + settings.timeout_s:
            raise DeadlineExceeded(f"no answer within {settings.timeout_s:g} s")
        # Counted from when it had to wait, not from its arrival: a replica may die late.
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        until_s = self._waiting_since_s + (
            settings.max_wait_s if full else settings.wait_for_replica_s
        )
        if now_s >= until_s:
            raise self._waited_in_vain(full)
        # After a failure the replica that was tried may be the only one, restarted under its old
        # name or confirmed alive again: give it another chance once the fleet has changed.
        self._tried.clear()
        return Wait(until_s, aside)

    def _waited_in_vain(self, full: bool) -> QueueTimeout | NoReplica:
        name, settings = self.model.name, self.model.settings
        retry_after_s = max(settings.retry_after_s, 1.0)
        if full:
            return QueueTimeout(
                f"no replica of `{name}` had a place within {settings.max_wait_s:g} s",
                retry_after_s=retry_after_s,
            )
        tried = f" ({self._last_error})" if self._last_error else ""
        return NoReplica(
            f"no replica of `{name}` became ready within {settings.wait_for_replica_s:g} s{tried}",
            retry_after_s=retry_after_s,
        )


def has_place(replica: ReplicaView) -> bool:
    """Return whether a replica may take one more request."""
    return replica.load < replica.max_outstanding
