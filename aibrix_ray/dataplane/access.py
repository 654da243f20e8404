"""Whose a request is, what it may use, and what it is charged: keys, limits and usage of a gateway.

With neither keys nor limits there is nothing of this, and a request meets one `if`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aibrix_ray.config.gateway import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import wire
from aibrix_ray.dataplane.metrics import GatewayMetrics
from aibrix_ray.errors import ExceedsLimit, ModelNotAllowed, RateLimited
from aibrix_ray.limiter import Admitted, GatewayLimiter, LocalAuthority, has_limits
from aibrix_ray.pipeline import Life
from aibrix_ray.tenants import Tenancy, Tenant, key_of
from aibrix_ray.types import Ending, RequestView, Usage

MakeLimiter = Callable[[], GatewayLimiter]

#: In the scope of a request that came from Python within the cluster: it needs no key.
TRUSTED = "aibrix.trusted"


def local_limiter() -> GatewayLimiter:
    """Return the limiter of a gateway that is alone."""
    return GatewayLimiter("gateway", LocalAuthority())


class Visit:
    """What is known of one request at the door; filled on its way, read at its end.

    `user` is as the client says; `choices` is how many answers it asks for (`n`).
    """

    __slots__ = ("admitted", "choices", "life", "tenant", "user")

    def __init__(self, user: str | None) -> None:
        self.user = user
        self.choices = 1
        self.tenant: Tenant | None = None
        self.admitted: Admitted | None = None
        self.life: Life | None = None


class Access:
    """Keys, limits and usage of one gateway.

    When the store dies, known keys go on and others get 503; when the limiter's authority dies,
    each gateway goes on with its share (`tenants/directory`, `limiter/gateway`).

    Attributes:
        tenancy: tenants and keys; None: no keys are asked for.
        on: whether a request has to come by here at all.
    """

    def __init__(
        self,
        args: GatewayArgs,
        metrics: GatewayMetrics,
        *,
        make_limiter: MakeLimiter = local_limiter,
    ) -> None:
        self.tenancy = Tenancy.of(args.auth) if args.auth.keys else None
        self.on = self.tenancy is not None
        self._metrics = metrics
        self._make_limiter = make_limiter
        self._limiter: GatewayLimiter | None = None
        self._starting: asyncio.Task[None] | None = None
        self._started = False

    def apply(self, user_config: GatewayUserConfig) -> None:
        """Take the limits of models and users."""
        limits = has_limits(user_config)
        self.on = limits or self.tenancy is not None
        # Tenants get their limits in the store, at any time.
        if self.on and self._limiter is None:
            limiter = self._limiter = self._make_limiter()
            self._metrics.watch("limiter", lambda: limiter.reachable)
            if self._started:
                self._starting = asyncio.create_task(limiter.start(), name="aibrix-limits")
        if self._limiter is not None:
            self._limiter.apply(user_config)

    async def start(self) -> None:
        """Follow store and limiter from now on, on the running loop."""
        self._started = True
        if self.tenancy is not None:
            directory = self.tenancy.directory
            self._metrics.watch("store", lambda: directory.reachable)
            self.tenancy.start()
        if self._limiter is not None:
            await self._limiter.start()

    async def close(self) -> None:
        """Give back what is leased, write the usage that is left; no request is under way."""
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._limiter is not None:
            await self._limiter.close()
        if self.tenancy is not None:
            await self.tenancy.close()

    async def tenant_of(self, headers: Sequence[tuple[bytes, bytes]]) -> Tenant | None:
        """Return whose key a request carries; None where keys are off.

        Raises:
            InvalidApiKey: it has none, or none that works.
            StoreUnavailable: the key was never seen here, and the store cannot be asked.
        """
        if self.tenancy is None:
            return None
        directory, key = self.tenancy.directory, key_of(headers)
        known = directory.find(key) if key is not None else None
        return known if known is not None else await directory.lookup(key)

    async def admit(self, visit: Visit, request: RequestView) -> None:
        """Let a request in; what it may use is reserved when this returns.

        Raises:
            ModelNotAllowed: the tenant may not use the model.
            RateLimited: a limit is used up.
            ExceedsLimit: the prompt alone is larger than a limit.
        """
        tenant = visit.tenant
        if tenant is not None:
            if not tenant.may_use(request.model):
                raise ModelNotAllowed(request.model)
            request.tenant, request.priority = tenant.name, tenant.priority
        limiter = self._limiter
        assert limiter is not None, "`on` without a limiter"
        max_output = None if request.max_tokens is None else request.max_tokens * visit.choices
        if request.path not in wire.GENERATING_PATHS:
            max_output = 0
        try:
            visit.admitted = await limiter.admit(
                request.model,
                tenant=tenant,
                user=request.user,
                prompt_bytes=len(request.prompt),
                max_output=max_output,
            )
        except (RateLimited, ExceedsLimit) as error:
            self._metrics.limited(request.tenant, error.type)
            raise

    def leave(self, visit: Visit, life: Life, ending: Ending) -> None:
        """Charge a request that was let in and has ended, to its limits and to its tenant."""
        if visit.admitted is not None:
            _settle(visit.admitted, life.usage, ending, worked=life.sent > 0)
        tenant = visit.tenant
        if tenant is not None and self.tenancy is not None:
            model, adapter = life.model.name, life.request.adapter
            self.tenancy.recorder.add(tenant, model, adapter, life.usage)
            self._metrics.tenant_used(tenant.name, life.usage)


def _settle(admitted: Admitted, usage: Usage | None, ending: Ending, *, worked: bool) -> None:
    if usage is not None:
        admitted.settle(usage)
    elif ending is Ending.COMPLETED or ending is Ending.CLIENT_ERROR:
        admitted.settle(Usage())
    elif ending is Ending.CANCELLED and worked:
        # Who leaves before the end must not have computed for nothing; nobody knows how much.
        admitted.keep()
    else:
        admitted.settle(None)
