"""A gateway's side of the limits: what the data plane asks for every request.

`reserve` is a few microseconds of arithmetic on what the gateway holds; a task in the background
renews that, and no request that is covered by it waits for anything. One that is not (its limit is
nearly used up, or so small that no gateway may hold a part of it ahead) is neither refused on a
guess nor let through: it waits for the next exchange with the authority, some milliseconds.

While the authority is away nothing waits. Each gateway goes on with what it holds, and then with
its fair share of every rate: `limit / gateways` a minute, so that all of them together admit the
limit a minute, and at most one limit more in the minute in which the authority was lost. Of a
concurrency cap it has the slots that it leased, for `LEASE_S`, and then none: they may have been
granted to others. `reachable` says which of the two it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from aibrix_ray.config.gateway import GatewayUserConfig
from aibrix_ray.limiter.authority import Authority
from aibrix_ray.limits import (
    Book,
    Claim,
    Estimator,
    Header,
    Limits,
    Refusal,
    Reservation,
    Subject,
)
from aibrix_ray.limits.ledger import RECLAIM_S
from aibrix_ray.telemetry.condition import Condition
from aibrix_ray.types import Usage

logger = logging.getLogger(__name__)

#: A sync is sent at least this often; it keeps slot leases alive.
HEARTBEAT_S = 1.0
#: What nobody waits for is gathered for this long before it is told.
_GATHER_S = 0.05
#: Between two syncs for which somebody waits, and when the last one decided nothing.
_URGENT_S = 0.005
_UNDECIDED_S = 0.05
CALL_TIMEOUT_S = 1.0
#: How long a request waits for the authority before it is refused as unsure: longer than one that
#: began anew may have to wait itself before it knows who holds which slots.
WAIT_S = RECLAIM_S + 1.0
_MIN_BACK_OFF_S = 0.1
_MAX_BACK_OFF_S = 2.0
#: A longer user's name is a key by its digest.
_MAX_USER = 256
#: Hardly any text has longer tokens on the average.
_MOST_BYTES_A_TOKEN = 16


class LimitedTenant(Protocol):
    """What is asked of a tenant; `tenants.Tenant` is one."""

    @property
    def name(self) -> str:
        """Its name, unique among tenants."""

    @property
    def limits(self) -> Limits:
        """Its limits, one object for as long as they are equal."""


def has_limits(user_config: GatewayUserConfig) -> bool:
    """Return whether a configuration limits anything, tenants aside."""
    models = user_config.models.values()
    return bool(Limits.of(user_config.user_limits)) or any(Limits.of(m.limits) for m in models)


class Admitted:
    """A request that was admitted. Settle it exactly once, whatever became of it.

    Only the first `settle` counts, so a `finally` may always call it.
    """

    __slots__ = ("_estimator", "_prompt_bytes", "_reservation")

    def __init__(
        self, reservation: Reservation | None, estimator: Estimator, prompt_bytes: int
    ) -> None:
        self._reservation = reservation
        self._estimator = estimator
        self._prompt_bytes = prompt_bytes

    @property
    def headers(self) -> list[Header]:
        """The `x-ratelimit-*` headers for the answer; empty if nothing limits this request."""
        return [] if self._reservation is None else self._reservation.headers

    def settle(self, usage: Usage | None) -> None:
        """End with what the engine counted, also of a stream that was cut.

        `None`: nothing was produced, and the request counts as if it had never been. An engine that
        worked and produced nothing is `Usage()`: the request counts, and no tokens.
        """
        if usage is None:
            if self._reservation is not None:
                self._reservation.cancel()
            return
        if self._reservation is not None and self._reservation.settle(
            usage.prompt_tokens + usage.completion_tokens
        ):
            self._estimator.observe(self._prompt_bytes, usage)

    def keep(self) -> None:
        """End without knowing what was used: what was reserved stays charged."""
        if self._reservation is not None:
            self._reservation.settle(self._reservation.tokens)


class GatewayLimiter:
    """The limits of one gateway. `name` is unique among gateways, and new after a restart.

    `gateways` is how many there probably are; it counts until the authority has told.
    """

    def __init__(
        self,
        name: str,
        authority: Authority,
        *,
        gateways: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._marked, self._urgent = asyncio.Event(), asyncio.Event()
        self._book = Book(name, gateways=gateways, on_mark=self._on_mark)
        self._models: dict[str, Limits] = {}
        self._users = Limits()
        self._estimators: dict[str, Estimator] = {}
        self._waiting: dict[Claim, asyncio.Future[Reservation | Refusal]] = {}
        self._condition = Condition("limiter", __name__, expected=(OSError, TimeoutError))
        self._task: asyncio.Task[None] | None = None
        self._swept_s = self._synced_s = float("-inf")
        self._least_s = _URGENT_S

    @property
    def reachable(self) -> bool:
        """Whether the authority answered the last time."""
        return self._book.exchange.joined

    def apply(self, user_config: GatewayUserConfig) -> None:
        """Take the limits of models and users; what is spent stays spent, what runs goes on."""
        models = {name: Limits.of(model.limits) for name, model in user_config.models.items()}
        self._models = {name: limits for name, limits in models.items() if limits}
        self._users = Limits.of(user_config.user_limits)

    async def start(self) -> None:
        """Begin on the running loop; returns when the authority has answered or failed once."""
        assert self._task is None, "the limiter was started twice"
        await self._connect()
        self._task = asyncio.create_task(self._run(), name="aibrix-limiter")

    async def close(self) -> None:
        """Give back what is held. Call it once no request is under way."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        if self.reachable:
            await self._sync(leaves=True)
        for claim in list(self._waiting):
            self._expire(claim)
        await self._authority.close()

    async def admit(
        self,
        model: str,
        *,
        tenant: LimitedTenant | None,
        user: str | None,
        prompt_bytes: int,
        max_output: int | None,
    ) -> Admitted:
        """Admit a request: at once by what is held, else after an exchange with the authority.

        Raises what `reserve` and `wait` do.
        """
        return self.reserve(
            model,
            tenant=tenant,
            user=user,
            prompt_bytes=prompt_bytes,
            max_output=max_output,
            now_s=self._clock(),
        ) or await self.wait(
            model, tenant=tenant, user=user, prompt_bytes=prompt_bytes, max_output=max_output
        )

    def reserve(
        self,
        model: str,
        *,
        tenant: LimitedTenant | None,
        user: str | None,
        prompt_bytes: int,
        max_output: int | None,
        now_s: float,
    ) -> Admitted | None:
        """Admit a request by what is held. `None`: only the authority knows, `await wait(...)`.

        `max_output` is what the request allows of an answer (`max_tokens`, times `n`); `None` if it
        does not say. `now_s` is on this limiter's clock.

        Raises:
            RateLimited: a limit is used up.
            ExceedsLimit: the prompt is larger than a limit.
        """
        subjects = self._subjects(model, tenant, user)
        estimator = self._estimators.get(model)
        if estimator is None:
            estimator = self._estimators[model] = Estimator()
        if not subjects:
            return Admitted(None, estimator, prompt_bytes)
        tokens = _tokens(estimator, subjects, prompt_bytes, max_output)
        result = self._book.try_reserve(subjects, tokens, now_s)
        if result is None:
            return None
        if isinstance(result, Refusal):
            raise result.error()
        return Admitted(result, estimator, prompt_bytes)

    async def wait(
        self,
        model: str,
        *,
        tenant: LimitedTenant | None,
        user: str | None,
        prompt_bytes: int,
        max_output: int | None,
    ) -> Admitted:
        """Admit a request after an exchange with the authority; at most `WAIT_S`.

        Raises:
            RateLimited: a limit is used up, or the authority could not say in time.
            ExceedsLimit: the prompt is larger than a limit.
        """
        subjects = self._subjects(model, tenant, user)
        estimator = self._estimators.setdefault(model, Estimator())
        tokens = _tokens(estimator, subjects, prompt_bytes, max_output)
        result = await self._claim(subjects, tokens)
        if isinstance(result, Refusal):
            raise result.error()
        return Admitted(result, estimator, prompt_bytes)

    # private

    def _subjects(
        self, model: str, tenant: LimitedTenant | None, user: str | None
    ) -> list[Subject]:
        subjects: list[Subject] = []
        if tenant is not None and (limits := tenant.limits):
            subjects.append((f"tenant:{tenant.name}", limits))
        if user is not None and (limits := self._users):
            if len(user) > _MAX_USER:
                user = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
            key = f"user:{user}" if tenant is None else f"tenant:{tenant.name}/user:{user}"
            subjects.append((key, limits))
        if found := self._models.get(model):
            subjects.append((f"model:{model}", found))
        return subjects

    async def _claim(self, subjects: list[Subject], tokens: int) -> Reservation | Refusal:
        claim = self._book.claim(subjects, tokens, self._clock())
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reservation | Refusal] = loop.create_future()
        self._waiting[claim] = future
        self._decide(claim)
        timer = loop.call_later(WAIT_S, self._expire, claim)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                del self._waiting[claim]
                self._book.end_claim(claim)
            elif isinstance(result := future.result(), Reservation):
                result.cancel()  # Decided in the very moment in which the client left.
            raise
        finally:
            timer.cancel()

    def _expire(self, claim: Claim) -> None:
        self._decide(claim)
        future = self._waiting.get(claim)
        if future is not None and not future.cancelled():
            del self._waiting[claim]
            future.set_result(self._book.late(claim, self._clock()))
            self._book.end_claim(claim)

    def _on_mark(self, urgent: bool) -> None:
        self._marked.set()
        if urgent:
            self._urgent.set()

    async def _run(self) -> None:
        back_off_s = _MIN_BACK_OFF_S
        while True:
            if self._book.exchange.lost_s is None:
                await self._pause()
                back_off_s = _MIN_BACK_OFF_S
            else:
                await asyncio.sleep(back_off_s)
                back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)
            try:
                await self._exchange()
            # The rim of the task: a gateway without it would never hear of its authority again.
            except Exception as error:
                logger.exception("an exchange with the limiter failed in a way that is not known")
                self._lose(error)

    async def _exchange(self) -> None:
        self._sweep()
        if self._book.exchange.lost_s is None:
            await self._sync()
        else:
            await self._connect()

    async def _connect(self) -> None:
        try:
            await self._authority.connect()
        # The rim of the limiter: a gateway goes on without its authority, whatever happened to it.
        except Exception as error:
            self._lose(error)
        else:
            await self._sync()

    async def _pause(self) -> None:
        """Wait until there is something to tell, or for the heartbeat."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                await self._marked.wait()
                async with asyncio.timeout(_GATHER_S):
                    await self._urgent.wait()
        early_s = self._synced_s + self._least_s - self._clock()
        if early_s > 0:
            await asyncio.sleep(early_s)

    async def _sync(self, *, leaves: bool = False) -> None:
        self._marked.clear()
        self._urgent.clear()
        exchange = self._book.exchange
        sent_s = self._synced_s = self._clock()
        batch = exchange.compose(sent_s, leaves=leaves)
        try:
            grants = await asyncio.wait_for(self._authority.sync(batch.sync), CALL_TIMEOUT_S)
        except asyncio.CancelledError:
            exchange.fail(batch, self._clock())
            raise
        # The same rim.
        except Exception as error:
            exchange.fail(batch, self._clock())
            self._lose(error)
            return
        exchange.apply(batch, grants, sent_s=sent_s, now_s=self._clock())
        self._condition.good()
        self._decide_all()
        self._least_s = _UNDECIDED_S if self._waiting else _URGENT_S
        if not self.reachable:
            self._on_mark(True)  # It forgot us: join again at once.
        elif self._book.accounts.has_marks:
            self._marked.set()

    def _lose(self, error: Exception) -> None:
        self._book.exchange.lose(self._clock())
        self._condition.bad(error)
        self._decide_all()

    def _decide_all(self) -> None:
        for claim in list(self._waiting):
            self._decide(claim)

    def _decide(self, claim: Claim) -> None:
        if self._waiting[claim].cancelled():
            return  # Its client has just left; whoever waited for it is about to clean up.
        result = self._book.try_claim(claim, self._clock())
        if result is not None:
            self._waiting.pop(claim).set_result(result)

    def _sweep(self) -> None:
        now_s = self._clock()
        if now_s - self._swept_s >= HEARTBEAT_S:
            self._swept_s = now_s
            self._book.accounts.sweep(now_s)


def _tokens(
    estimator: Estimator, subjects: list[Subject], prompt_bytes: int, max_output: int | None
) -> int:
    """Return what to reserve.

    It is a guess, which alone must not make a request larger than a limit, since then no waiting
    would ever let it through: only a prompt whose bytes cannot be so few tokens is too large.
    """
    prompt = estimator.prompt_tokens(prompt_bytes)
    tokens = prompt + estimator.output_tokens(max_output)
    for _, limits in subjects:
        limit = limits.tokens_per_minute
        if limit is not None and tokens > limit:
            tokens = prompt if prompt_bytes > limit * _MOST_BYTES_A_TOKEN else limit
    return tokens
