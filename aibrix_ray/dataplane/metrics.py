"""The gateway's figures: plain numbers on the hot path, Prometheus text when it is asked for.

A label lookup of the client library costs more than everything else we do for a request, so counts
are additions to numbers in memory (`dataplane/cells`), which the library turns into text at a
scrape. After `join` that memory is shared, and a scrape of any gateway tells the whole node; gauges
of siblings are then up to `PUBLISH_S` old, counters are exact.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client import ProcessCollector

from aibrix_ray import __version__
from aibrix_ray.dataplane.cells import Cells, Key, clip
from aibrix_ray.dataplane.exposition import GONE, exposition
from aibrix_ray.dataplane.siblings import Figures, Siblings
from aibrix_ray.observability import metrics as table
from aibrix_ray.observability.metrics import Definition, Kind
from aibrix_ray.pipeline import STALE_S, ModelState
from aibrix_ray.types import Ending, Usage

logger = logging.getLogger(__name__)

#: Gauges are brought up to date this often.
PUBLISH_S = 1.0
#: Counting open files means to list them all, so the process's own figures come less often.
_PROCESS_S = 10.0
#: Names beyond these are counted together, so that no client can fill the memory.
MAX_MODELS, MAX_TENANTS, MAX_LIMITS = 1000, 100, 16
OTHER = "other"

_KINDS = ("prompt", "cached_prompt", "generation")


class Histogram:
    """Counts a bucket and sums; `observe` costs one bisection."""

    __slots__ = ("_bounds", "_cells", "_sum")

    def __init__(self, bounds: tuple[float, ...], cells: memoryview[float]) -> None:
        self._bounds = bounds
        self._cells = cells
        self._sum = len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count one value."""
        self._cells[bisect_left(self._bounds, value)] += 1.0
        self._cells[self._sum] += value


class ModelMetrics:
    """What is counted for one model in one gateway."""

    __slots__ = (
        "_cells",
        "_endings",
        "_model",
        "broken",
        "e2e_s",
        "expired",
        "hedges",
        "queue_wait_s",
        "refused",
        "resumed",
        "retries",
        "token_cells",
        "tpot_s",
        "ttft_s",
    )

    def __init__(self, cells: Cells, model: str) -> None:
        self._cells = cells
        self._model = model
        self._endings: dict[tuple[str, int], memoryview[float]] = {}
        if model:
            self.ended(Ending.COMPLETED, 200, 0.0)  # so that already the first one is a rise
        else:
            cells = Cells()  # of a request without a model only the end is shown
        self.token_cells = tuple(_cells(cells, table.TOKENS, model, kind) for kind in _KINDS)
        self.ttft_s = _histogram(cells, table.TTFT, model)
        self.tpot_s = _histogram(cells, table.TPOT, model)
        self.e2e_s = _histogram(cells, table.E2E, model)
        self.queue_wait_s = _histogram(cells, table.QUEUE_WAIT, model)
        self.retries = _cells(cells, table.RETRIES, model)
        self.hedges = _cells(cells, table.HEDGES, model)
        self.resumed = _cells(cells, table.RESUMED, model)
        self.broken = _cells(cells, table.BROKEN, model)
        self.refused = _cells(cells, table.QUEUE_REFUSED, model)
        self.expired = _cells(cells, table.QUEUE_EXPIRED, model)

    @property
    def endings(self) -> dict[tuple[Ending, int], int]:
        """Requests of this gateway by ending and status."""
        return {(Ending(e), status): int(c[0]) for (e, status), c in self._endings.items()}

    @property
    def tokens(self) -> list[int]:
        """Tokens of this gateway: prompt, cached prompt, generation."""
        return [int(cell[0]) for cell in self.token_cells]

    def ended(self, ending: Ending, status: int, count: float = 1.0) -> None:
        """Count a request's end."""
        key = (ending._value_, status)  # an enum's own hash and `value` are Python functions
        cell = self._endings.get(key)
        if cell is None:
            cell = _cells(self._cells, table.REQUESTS, self._model, key[0], str(status))
            self._endings[key] = cell
        cell[0] += count


class TenantMetrics:
    """What is counted for one tenant in one gateway."""

    __slots__ = ("_cells", "_limited", "_tenant", "requests", "tokens")

    def __init__(self, cells: Cells, tenant: str) -> None:
        self._cells = cells
        self._tenant = tenant
        self._limited: dict[str, memoryview[float]] = {}
        self.requests = _cells(cells, table.TENANT_REQUESTS, tenant)
        self.tokens = tuple(_cells(cells, table.TENANT_TOKENS, tenant, kind) for kind in _KINDS)

    def limited(self, kind: str) -> None:
        """Count a refusal by a limit."""
        cell = self._limited.get(kind)
        if cell is None:
            kind = kind if len(self._limited) < MAX_LIMITS else OTHER
            cell = _cells(self._cells, table.LIMITED, self._tenant, kind)
            self._limited[kind] = cell
        cell[0] += 1.0


class GatewayMetrics:
    """All figures of one gateway process. Every call on the gateway's loop.

    Args:
        models: the models that are known, by name.
        under_way: how many requests this gateway has under way.
        waiting: requests in a model's admission queue, and how many it takes.
        ejected: replicas of a model that are left out because they fail.
        clock: seconds, the one that `ReplicaView.stats_at_s` is on.
    """

    def __init__(
        self,
        models: Mapping[str, ModelState],
        under_way: Callable[[], int],
        *,
        waiting: Callable[[ModelState], tuple[int, int]] = lambda model: (0, 0),
        ejected: Callable[[ModelState], int] = lambda model: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live_models = models
        self._under_way = under_way
        self._waiting = waiting
        self._ejected = ejected
        self._clock = clock
        self._process = ProcessCollector(namespace="aibrix_ray", registry=None)
        self._process_due_s = float("-inf")
        self._dependencies: dict[str, Callable[[], bool]] = {}
        self._siblings: Siblings | None = None
        self._cells = Cells()
        self._models: dict[str, ModelMetrics] = {}
        self._tenants: dict[str, TenantMetrics] = {}
        self._gauges_shown: set[Key] = set()

    # What is counted: O(1), well below a microsecond.

    def request_ended(self, model: str, ending: Ending, status: int) -> None:
        """Count a request that has been answered or given up; `model` "" if never resolved."""
        self.of(model).ended(ending, status)

    def attempt_ended(
        self,
        model: str,
        ttft_s: float | None,
        e2e_s: float,
        usage: Usage | None,
        *,
        streamed: bool = False,
    ) -> None:
        """Count what one attempt on a replica measured.

        Only of a `streamed` answer do the first bytes say when the first token was there.
        """
        metrics = self.of(model)
        if ttft_s is not None:
            metrics.e2e_s.observe(e2e_s)
            if streamed:
                metrics.ttft_s.observe(ttft_s)
                if usage is not None and usage.completion_tokens > 1:
                    metrics.tpot_s.observe((e2e_s - ttft_s) / (usage.completion_tokens - 1))
        if usage is not None:
            _add(metrics.token_cells, usage)

    def retried(self, model: str) -> None:
        """Count an attempt that failed before its first byte."""
        self.of(model).retries[0] += 1.0

    def hedged(self, model: str) -> None:
        """Count a second replica that was asked because the first one was slow."""
        self.of(model).hedges[0] += 1.0

    def resumed(self, model: str) -> None:
        """Count a stream that went on at another replica."""
        self.of(model).resumed[0] += 1.0

    def broken(self, model: str) -> None:
        """Count a stream that ended with an error event."""
        self.of(model).broken[0] += 1.0

    def waited(self, model: str, seconds: float) -> None:
        """Count a request that left the admission queue for a replica."""
        self.of(model).queue_wait_s.observe(seconds)

    def queue_refused(self, model: str) -> None:
        """Count a request that found the admission queue full."""
        self.of(model).refused[0] += 1.0

    def queue_expired(self, model: str) -> None:
        """Count a request that waited in the admission queue for too long."""
        self.of(model).expired[0] += 1.0

    def tenant_used(self, tenant: str, usage: Usage | None) -> None:
        """Count a tenant's request that ended, and its tokens."""
        metrics = self._tenant(tenant)
        metrics.requests[0] += 1.0
        if usage is not None:
            _add(metrics.tokens, usage)

    def limited(self, tenant: str, kind: str) -> None:
        """Count a request that a limit refused; `kind` is the limit's name."""
        self._tenant(tenant).limited(kind)

    def of(self, model: str) -> ModelMetrics:
        """Return the figures of one model; not to be kept beyond `join`."""
        found = self._models.get(model)
        if found is None:
            if len(self._models) >= MAX_MODELS and model != OTHER:
                return self.of(OTHER)
            found = self._models[model] = ModelMetrics(self._cells, model)
        return found

    # What is asked for.

    def watch(self, dependency: str, reachable: Callable[[], bool]) -> None:
        """Export whether something that the gateway depends on is reachable; asked each second."""
        self._dependencies[dependency] = reachable

    def render(self, *, scope: Literal["node", "process"] = "node") -> bytes:
        """Return the Prometheus text, of all gateways of this node or of this one alone."""
        self._publish_process()
        self.publish()
        if self._siblings is None or scope == "process":
            return exposition([Figures(True, list(self._cells.records()))])
        return exposition(self._siblings.figures())

    def publish(self) -> None:
        """Bring the gauges up to date, for the siblings to read."""
        now_s = self._clock()
        if now_s >= self._process_due_s:
            self._publish_process()
        current = {
            self._key(table.GATEWAYS): 1.0,
            self._key(table.BUILD_INFO, __version__): 1.0,
            self._key(table.IN_FLIGHT): float(self._under_way()),
        }
        for name, reachable in self._dependencies.items():
            current[self._key(table.DEPENDENCY_UP, name)] = float(reachable())
        for model in self._live_models.values():
            current |= self._gauges(model, now_s)
        for key in self._gauges_shown - current.keys():
            self._cells.get(key)[0] = GONE
        for key, value in current.items():
            self._cells.get(key)[0] = value
        self._gauges_shown = set(current)

    async def publish_regularly(self, period_s: float = PUBLISH_S) -> None:
        """Publish for ever; a task of the gateway."""
        while True:
            try:
                self.publish()
            # The rim of the task: figures are no reason to end a gateway.
            except Exception:
                logger.exception("cannot publish the gauges")
            await asyncio.sleep(period_s)

    def join(self, application: str, port: int) -> None:
        """Be one of the gateways that share a port; what was counted so far comes along.

        Where the shared memory cannot be had, that is logged and this gateway tells only its own.
        """
        assert self._siblings is None, "a gateway joins once"
        try:
            self._siblings = Siblings(application, port)
        except OSError as error:
            logger.warning("no shared memory, /metrics tells this process only: %s", error)
            return
        before, self._cells = self._cells, self._siblings.cells
        self._models.clear()
        self._tenants.clear()
        for record in before.records():
            cells = self._cells.get(record.key, len(record.values))
            for index, value in enumerate(record.values):
                cells[index] = value
        self.publish()

    def leave(self) -> None:
        """Stop to be one of them, when nothing more will be counted; counters stay with them."""
        if self._siblings is not None:
            self._siblings.leave()
            self._siblings = None

    # private

    def _tenant(self, tenant: str) -> TenantMetrics:
        found = self._tenants.get(tenant)
        if found is None:
            if len(self._tenants) >= MAX_TENANTS and tenant != OTHER:
                return self._tenant(OTHER)
            found = self._tenants[tenant] = TenantMetrics(self._cells, tenant)
        return found

    def _gauges(self, model: ModelState, now_s: float) -> dict[Key, float]:
        self.of(model.name)  # its counters are there before its first request
        waiting, capacity = self._waiting(model)
        ages_s = [now_s - r.stats_at_s for r in model.members if r.stats is not None]
        gauges: dict[Definition, float] = {
            table.READY: len(model.ready),
            table.HELD: model.held,
            table.QUEUE_WAITING: waiting,
            table.QUEUE_CAPACITY: capacity,
            table.EJECTED: self._ejected(model),
            table.STALE: sum(age_s > STALE_S for age_s in ages_s),
        }
        if ages_s:
            gauges[table.TELEMETRY_AGE] = min(ages_s)
        return {self._key(each, model.name): float(value) for each, value in gauges.items()}

    def _publish_process(self) -> None:
        self._process_due_s = self._clock() + _PROCESS_S
        for family in self._process.collect():
            for sample in family.samples:
                definition = table.BY_NAME.get(sample.name)
                if definition is not None:
                    self._cells.get(self._key(definition))[0] = sample.value

    def _key(self, definition: Definition, *labels: str) -> Key:
        return _key(definition, labels)


def _key(definition: Definition, labels: tuple[str, ...]) -> Key:
    shown = tuple(clip(label) for label in labels)
    return Key(definition.name, shown, definition.kind is Kind.GAUGE)


def _cells(cells: Cells, definition: Definition, *labels: str) -> memoryview[float]:
    return cells.get(_key(definition, labels), definition.cells)


def _histogram(cells: Cells, definition: Definition, model: str) -> Histogram:
    return Histogram(definition.buckets, _cells(cells, definition, model))


def _add(tokens: tuple[memoryview[float], ...], usage: Usage) -> None:
    prompt, cached, generation = tokens
    prompt[0] += usage.prompt_tokens
    cached[0] += usage.cached_tokens
    generation[0] += usage.completion_tokens
