"""The life of a request as a pure object: resolve → admit → route → retry.

The gateway drives it with real connections, the simulator with virtual time; both ask
`Life.next` what to do, do it, and say what became of it. Holds no clock and opens no connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from aibrix_ray.errors import (
    BadRequest,
    DeadlineExceeded,
    ModelNotFound,
    NoReplica,
    Overloaded,
    ReplicaFailed,
)
from aibrix_ray.routing import RoutingPolicy
from aibrix_ray.types import Ending, Outcome, ReplicaView, RequestView, Usage, Verdict

#: How many replicas may die under one request after it had made progress there.
MAX_BREAKS = 5


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The run-time settings of one model; all waits have an end.

    Attributes:
        wait_for_replica_s: how long a request of a model without a ready replica is held.
        first_byte_timeout_s: from sending to the answer's first byte.
        idle_timeout_s: the longest pause within an answer.
        timeout_s: the whole request.
        max_attempts: replicas tried before the first byte.
        retry_after_s: what a 429 or 503 advises.
        resume: a stream whose replica dies goes on at another one.
    """

    wait_for_replica_s: float = 60.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    timeout_s: float = 3600.0
    max_attempts: int = 3
    retry_after_s: float = 1.0
    resume: bool = True


@dataclass(slots=True, eq=False)
class ModelState:
    """One model as the pipeline sees it: its policy and the replicas that are ready now."""

    name: str
    policy: RoutingPolicy
    settings: ModelSettings = field(default_factory=ModelSettings)
    ready: list[ReplicaView] = field(default_factory=list)
    held: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """No replica may take the request now; ask again when the fleet changes or at `until_s`."""

    until_s: float


class Pipeline:
    """Resolves names to models and begins lives. One a gateway."""

    def __init__(self) -> None:
        self._models: dict[str, ModelState] = {}
        self._aliases: dict[str, str] = {}

    @property
    def models(self) -> dict[str, ModelState]:
        """Every known model by its own name, ready or not."""
        return self._models

    @property
    def aliases(self) -> dict[str, str]:
        """Other names → the model's own name."""
        return self._aliases

    def set_aliases(self, aliases: dict[str, str]) -> None:
        """Replace all aliases; an alias of a model that is not known yet is kept."""
        self._aliases = dict(aliases)

    def resolve(self, name: object) -> ModelState:
        """Return the model that a request names; with one model only, none need be named.

        Raises:
            BadRequest: no model is named and there are several, or the name is not a string.
            ModelNotFound: no model or alias has this name.
        """
        if name is None or name == "":
            if len(self._models) == 1:
                return next(iter(self._models.values()))
            raise BadRequest(
                "`model` is required because this server has more than one; "
                f"choose one of: {', '.join(sorted(self.names())) or '(none yet)'}",
                param="model",
            )
        if not isinstance(name, str):
            raise BadRequest("`model` must be a string", param="model")
        model = self._models.get(name) or self._models.get(self._aliases.get(name, ""))
        if model is None:
            raise ModelNotFound(name, self.names())
        return model

    def names(self) -> Iterable[str]:
        """Every name that a request may use."""
        return [*self._models, *(a for a, m in self._aliases.items() if m in self._models)]

    def begin(self, model: ModelState, request: RequestView, now_s: float) -> Life:
        """Start the life of a request that was resolved to `model`."""
        return Life(model, request, now_s)


class Life:
    """One request from its arrival to its end. Not shared between requests."""

    __slots__ = (
        "_breaks",
        "_last_error",
        "_tried",
        "_waiting_since_s",
        "arrived_s",
        "attempts",
        "model",
        "request",
    )

    def __init__(self, model: ModelState, request: RequestView, now_s: float) -> None:
        self.model = model
        self.request = request
        self.arrived_s = now_s
        self.attempts = 0
        self._tried: list[str] = []
        self._breaks = 0
        self._last_error = ""
        self._waiting_since_s: float | None = None

    def next(self, now_s: float) -> ReplicaView | Wait:
        """Return the replica to send to, or how long to wait for one.

        Raises:
            Overloaded: every ready replica is full, or the policy rejects.
            NoReplica: none became ready within `wait_for_replica_s`.
            ReplicaFailed: `max_attempts` replicas failed before their first byte.
            DeadlineExceeded: the request's own deadline has passed.
        """
        settings = self.model.settings
        if self.attempts >= settings.max_attempts:
            raise ReplicaFailed(
                f"{self.attempts} replicas of `{self.model.name}` failed under this request; "
                f"the last one: {self._last_error}"
            )
        ready: Sequence[ReplicaView] = self.model.ready
        if self._tried:
            ready = [r for r in ready if r.replica_id not in self._tried]
        if not ready:
            return self._wait(now_s)
        decision = self.model.policy.choose(self.request, ready, now_s)
        if decision.verdict is Verdict.SEND:
            replica = decision.replica
            assert replica is not None, "a policy said SEND without a replica"
            if replica.load < replica.max_outstanding:
                return self._send(replica)
            return self._choose_unfilled(ready, now_s)
        if decision.verdict is Verdict.QUEUE:
            return self._wait(now_s)
        raise Overloaded(decision.reason, retry_after_s=settings.retry_after_s)

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
        status: int = 0,
        ttft_s: float | None = None,
        e2e_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Say how an attempt ended; the policy learns from it."""
        self.model.policy.observe(
            Outcome(
                request_id=self.request.request_id,
                model=self.model.name,
                replica_id=replica.replica_id,
                ending=ending,
                status=status,
                ttft_s=ttft_s,
                e2e_s=e2e_s,
                usage=usage,
            )
        )

    def _choose_unfilled(self, ready: Sequence[ReplicaView], now_s: float) -> ReplicaView | Wait:
        unfilled = [r for r in ready if r.load < r.max_outstanding]
        if not unfilled:
            raise Overloaded(
                f"all {len(ready)} ready replicas of `{self.model.name}` are full",
                retry_after_s=self.model.settings.retry_after_s,
            )
        decision = self.model.policy.choose(self.request, unfilled, now_s)
        if decision.verdict is Verdict.SEND:
            assert decision.replica is not None, "a policy said SEND without a replica"
            return self._send(decision.replica)
        if decision.verdict is Verdict.QUEUE:
            return self._wait(now_s)
        raise Overloaded(decision.reason, retry_after_s=self.model.settings.retry_after_s)

    def _send(self, replica: ReplicaView) -> ReplicaView:
        self.attempts += 1
        self._waiting_since_s = None
        return replica

    def _wait(self, now_s: float) -> Wait:
        settings = self.model.settings
        if now_s >= self.arrived_s + settings.timeout_s:
            raise DeadlineExceeded(f"no answer within {settings.timeout_s:g} s")
        # Counted from when it had to wait, not from its arrival: a replica may die late.
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        until_s = self._waiting_since_s + settings.wait_for_replica_s
        if now_s >= until_s:
            tried = f" ({self._last_error})" if self._last_error else ""
            raise NoReplica(
                f"no replica of `{self.model.name}` became ready within "
                f"{settings.wait_for_replica_s:g} s{tried}",
                retry_after_s=max(settings.retry_after_s, 1.0),
            )
        # After a failure the replica that was tried may be the only one, restarted under its old
        # name or confirmed alive again: give it another chance once the fleet has changed.
        self._tried.clear()
        return Wait(until_s)
