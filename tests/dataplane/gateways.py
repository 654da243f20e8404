"""A gateway under test: the real application on the real server, on a TCP port of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families

from aibrix_ray.asgi import Receive, Scope, Send, tcp_socket
from aibrix_ray.config import GatewayArgs, GatewayUserConfig, ModelConfig
from aibrix_ray.dataplane import FORWARDED_PATHS, GatewayApp, Member
from aibrix_ray.dataplane.channel import Address
from aibrix_ray.dataplane.fleet import Replica
from aibrix_ray.dataplane.listener import make_server
from aibrix_ray.dataplane.rim import Rim
from aibrix_ray.types import GroupInfo
from tests.dataplane.backends import Backend, RawBackend
from tests.dataplane.clients import RawClient
from tests.dataplane.waiting import eventually

Replicas = Sequence[Backend | RawBackend | Address]

#: Deadlines are looked at this often; the real period would make tests wait for nothing.
SWEEP_S = 0.01


class Gateway:
    """One gateway whose replicas are `m-0`, `m-1`, … of the group `m`, which serves the model `m`.

    A test that names several models gets one group a model.
    """

    def __init__(
        self,
        replicas: Replicas | Mapping[str, Replicas],
        *,
        user_config: GatewayUserConfig,
        args: GatewayArgs,
        max_outstanding: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = GatewayApp(args, user_config, clock=clock)
        self.begun = 0
        self.port = 0
        self.tolerated: list[str] = []
        by_model = replicas if isinstance(replicas, Mapping) else {"m": replicas}
        self.app.fleet.set_groups(
            GroupInfo(name=model, model=model, max_outstanding=max_outstanding)
            for model in by_model
        )
        for model, members in by_model.items():
            self.set_members(members, model)
        self.app.ready = True
        self.rim = Rim(self._app, args.http)
        self.server = make_server(self.rim.app, args)
        self._sweeper: asyncio.Task[None] | None = None
        self._http: httpx.AsyncClient | None = None
        self._clients: list[RawClient] = []

    async def start(self) -> None:
        sock = tcp_socket("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        await self.app.access.start()
        await self.server.listen(sock)
        self._sweeper = asyncio.create_task(self.app.forwarder.sweep(period_s=SWEEP_S))

    async def close(self) -> None:
        """Check that nothing is left under way and that each request was counted, then stop."""
        for client in self._clients:
            client.close()
        if self._http is not None:
            await self._http.aclose()
        assert self._sweeper is not None
        try:
            await self.until_idle()
            await eventually(
                lambda: self.ended == self.begun,
                lambda: f"{self.begun} requests began, {self.ended} were counted",
            )
            assert not self._sweeper.done(), "deadlines are not enforced any more"
        finally:
            self._sweeper.cancel()
            await self.server.close()
            await self.app.close()
            await self.rim.close()

    @property
    def http(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{self.port}", timeout=15.0, trust_env=False
            )
        return self._http

    async def connect(self, **options: Any) -> RawClient:
        client = await RawClient.open(self.port, **options)
        self._clients.append(client)
        return client

    async def post(self, body: Any = None, path: str = "/v1/chat/completions") -> httpx.Response:
        return await self.http.post(path, json={"model": "m"} if body is None else body)

    def set_members(self, members: Replicas, group: str = "m", *, epoch: str = "") -> None:
        addresses = [m if isinstance(m, Address) else m.address for m in members]
        self.app.fleet.set_members(
            group, [Member(f"{group}-{i}", a, epoch=epoch) for i, a in enumerate(addresses)]
        )

    def replica(self, index: int = 0, group: str = "m") -> Replica:
        return self.app.fleet.replicas(group)[index]

    @property
    def ready(self) -> list[str]:
        """The replicas of `m` that are routed to."""
        return [r.replica_id for r in self.app.pipeline.models["m"].ready]

    @property
    def in_flight(self) -> int:
        """Everything that counts a request which is under way."""
        fleet = self.app.fleet
        return (
            len(self.app.forwarder.under_way)
            + sum(r.in_flight for g in fleet.groups for r in fleet.replicas(g))
            + self.waiting
        )

    @property
    def held(self) -> int:
        return sum(model.held for model in self.app.pipeline.models.values())

    @property
    def waiting(self) -> int:
        """Requests in an admission queue, those that are held among them, and places promised."""
        queues = [model.queue for model in self.app.pipeline.models.values()]
        return sum(len(queue) + queue.promised for queue in queues)

    @property
    def retries(self) -> int:
        """Attempts that failed before their first byte, of every model."""
        names = self.app.pipeline.models
        return int(sum(self.app.metrics.of(name).retries[0] for name in names))

    @property
    def ended(self) -> int:
        """How many requests were counted, whatever their ending."""
        metrics = self.app.metrics
        names = ["", *self.app.pipeline.models]
        return sum(sum(metrics.of(name).endings.values()) for name in names)

    async def until_idle(self) -> None:
        await eventually(lambda: self.in_flight == 0, lambda: f"in flight: {self.in_flight}")

    async def until_held(self, count: int = 1) -> None:
        await eventually(lambda: self.held == count, lambda: f"held: {self.held}")

    async def until_waiting(self, count: int = 1) -> None:
        await eventually(lambda: self.waiting == count, lambda: f"waiting: {self.waiting}")

    def endings(self, model: str = "m") -> dict[tuple[str, int], int]:
        """The counts of `model` by ending and status."""
        endings = self.app.metrics.of(model).endings
        return {(e.value, status): count for (e, status), count in endings.items() if count}

    async def until_ended(self, ending: str, status: int, model: str = "m") -> None:
        """Return once one request has been counted so, and none otherwise."""
        await eventually(
            lambda: self.endings(model) == {(ending, status): 1},
            lambda: f"counted {self.endings(model)}, not {ending} {status}",
        )

    async def until_ended_count(self, count: int) -> None:
        """Return once so many requests have been counted."""
        await eventually(lambda: self.ended == count, lambda: f"{self.ended} were counted")

    async def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Scrape `/metrics`; return values by name and labels."""
        text = (await self.http.get("/metrics")).text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def tolerate(self, text: str) -> None:
        """Expect a line with `text` in the log of errors; any other fails the test."""
        self.tolerated.append(text)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun += scope["path"] in FORWARDED_PATHS
        await self.app(scope, receive, send)


class MakeGateway(Protocol):
    async def __call__(
        self,
        replicas: Replicas | Mapping[str, Replicas] = (),
        *,
        models: Mapping[str, Any] = ...,
        args: Mapping[str, Any] = ...,
        max_outstanding: int = 512,
        clock: Callable[[], float] = ...,
        **model: Any,
    ) -> Gateway:
        """Start a gateway; `model` is the configuration of `m`, `models` that of others."""
        ...


def make_user_config(model: Mapping[str, Any], models: Mapping[str, Any]) -> GatewayUserConfig:
    """Return a configuration: `model` is that of `m`, `models` those of others by name."""
    every = {"m": model, **models}
    return GatewayUserConfig(models={name: ModelConfig(**config) for name, config in every.items()})
