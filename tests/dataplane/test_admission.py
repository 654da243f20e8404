"""A full fleet: requests wait at the gateway, in order, within bounds, and are told why not."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aibrix_ray.asgi import HttpServer, unix_socket
from aibrix_ray.config import ModelConfig
from aibrix_ray.dataplane import FORWARDED_PATHS
from aibrix_ray.dataplane.channel import Address
from aibrix_ray.dataplane.settings import model_settings
from aibrix_ray.engines.base import ReplicaIdentity
from aibrix_ray.engines.meta import REPLICA_LIMITS, ReplicaApp
from aibrix_ray.engines.simulated import SimulatedEngine
from aibrix_ray.pipeline import ModelSettings
from aibrix_ray.types import GroupInfo, ReplicaStats
from tests.dataplane.backends import DONE, JSON, SSE, Backend, Call, MakeBackend, event
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.test_streams import assert_ends_with_one_error
from tests.dataplane.waiting import Clock, eventually, within
from tests.engines.test_simulated_serving import make_engine

STREAM = {"model": "m", "stream": True}
COMMENT = b": waiting\n\n"


class Gate:
    """A handler that answers a request once it is let through, with its number in the body."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(0)
        self.served: list[int] = []
        self.open = False

    async def __call__(self, call: Call) -> None:
        if not self.open:
            await self._permits.acquire()
        self.served.append(call.json().get("n", -1))
        await call.answer(call.body, headers=[JSON])

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._permits.release()


class Full:
    """A gateway whose only replica is full with request 0."""

    def __init__(self, running: Gateway, replica: Backend, gate: Gate) -> None:
        self.running, self.replica, self.gate = running, replica, gate
        self.posts: dict[int, asyncio.Task[Any]] = {}

    def post(self, n: int) -> asyncio.Task[Any]:
        self.posts[n] = asyncio.create_task(self.running.post({"model": "m", "n": n}))
        return self.posts[n]

    async def wait(self, *numbers: int) -> None:
        """Let requests wait, one after the other."""
        before = self.running.waiting
        for count, n in enumerate(numbers, start=1):
            self.post(n)
            await self.running.until_waiting(before + count)

    async def statuses(self) -> dict[int, int]:
        return {n: (await within(post)).status_code for n, post in self.posts.items()}


async def make_full(backend: MakeBackend, gateway: MakeGateway, **options: Any) -> Full:
    gate = Gate()
    replica = await backend(gate)
    full = Full(await gateway([replica], **{"max_outstanding": 1, **options}), replica, gate)
    full.post(0)
    await replica.call()
    return full


def test_a_model_without_a_configuration_has_the_same_settings_as_one_with_an_empty_one() -> None:
    assert model_settings(None) == model_settings(ModelConfig()) == ModelSettings()


# Who goes next


async def test_who_waits_is_served_in_order_and_never_more_than_the_replica_may_hold(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full = await make_full(backend, gateway)
    await full.wait(1, 2, 3)
    for served in range(1, 5):
        assert len(full.replica.calls) == served, "one at a time"
        full.gate.let()
        await eventually(lambda n=served: len(full.gate.served) == n, "one more is served")  # type: ignore[misc]
        if served < 4:
            await full.replica.call(served)
    assert full.gate.served == [0, 1, 2, 3]
    assert set((await full.statuses()).values()) == {200}


async def test_a_newcomer_does_not_pass_those_who_wait(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full = await make_full(backend, gateway)
    await full.wait(1)
    full.gate.let()
    full.post(2)
    await eventually(lambda: len(full.replica.calls) == 2, "the next one is there")
    full.gate.let(2)
    await full.statuses()
    assert full.gate.served == [0, 1, 2]


async def test_a_place_that_a_report_makes_is_given_at_once(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    gate = Gate()
    gate.open = True
    running = await gateway([await backend(gate)], max_outstanding=4)
    fleet = running.app.fleet
    busy = {"group": "m", "model": "m", "epoch": "", "waiting": 0}
    fleet.apply_stats([ReplicaStats("m-0", sequence=1, running=4, **busy)], running.app._clock())  # type: ignore[arg-type]
    post = asyncio.create_task(running.post())
    await running.until_waiting()
    fleet.apply_stats([ReplicaStats("m-0", sequence=2, running=3, **busy)], running.app._clock())  # type: ignore[arg-type]
    assert (await within(post)).status_code == 200


async def test_a_new_replica_takes_as_many_as_it_may_hold(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full = await make_full(backend, gateway, max_outstanding=2)
    full.post(10)
    await full.replica.call(1)
    await full.wait(1, 2, 3)
    second = await backend(full.gate)
    full.running.set_members([full.replica, second])
    await second.call(1)
    assert len(second.calls) == 2
    assert full.running.waiting == 1
    full.gate.open = True
    full.gate.let(10)
    assert set((await full.statuses()).values()) == {200}


async def test_a_first_replica_is_not_run_over_by_those_who_were_held(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    gate = Gate()
    running = await gateway([], max_outstanding=2)
    posts = [asyncio.create_task(running.post({"model": "m", "n": n})) for n in range(5)]
    await running.until_held(5)
    replica = await backend(gate)
    running.set_members([replica])
    await replica.call(1)
    assert (running.held, running.waiting) == (0, 3)
    assert len(replica.calls) == 2
    gate.open = True
    gate.let(10)
    assert {(await within(post)).status_code for post in posts} == {200}


async def test_a_higher_limit_holds_at_once(backend: MakeBackend, gateway: MakeGateway) -> None:
    full = await make_full(backend, gateway)
    await full.wait(1)
    full.running.app.fleet.set_groups([GroupInfo(name="m", model="m", max_outstanding=1)])
    full.running.replica().group_limit = 2
    full.running.app.fleet.reconfigure()
    await full.replica.call(1)
    full.gate.let(2)
    assert set((await full.statuses()).values()) == {200}


# Who is refused


async def test_a_full_queue_is_429_with_retry_after(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full = await make_full(backend, gateway, admission={"max_waiting": 2}, retry_after_s=3)
    await full.wait(1, 2)
    answer = await within(full.post(3))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["code"] == "overloaded"
    assert "2 requests wait" in answer.json()["error"]["message"]
    full.gate.let(3)
    assert await full.statuses() == {0: 200, 1: 200, 2: 200, 3: 429}
    assert full.running.app.metrics.of("m").refused[0] == 1


async def test_with_no_queue_a_full_fleet_is_429_at_once(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full = await make_full(backend, gateway, admission={"max_waiting": 0})
    assert (await within(full.post(1))).status_code == 429
    full.gate.let()
    assert (await full.statuses())[0] == 200


async def test_who_waits_too_long_is_503_and_no_engine_hears_of_it(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    full = await make_full(backend, gateway, clock=clock, admission={"max_wait_s": 20})
    await full.wait(1)
    clock.advance(19.9)
    await clock.looked_at()
    assert not full.posts[1].done()
    clock.advance(0.1)
    answer = await within(full.posts[1])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "queue_timeout"
    full.gate.let()
    assert (await full.statuses())[0] == 200
    assert len(full.replica.calls) == 1
    assert full.running.app.metrics.of("m").expired[0] == 1


async def test_a_request_whose_own_time_is_over_is_504_and_no_engine_hears_of_it(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    full = await make_full(backend, gateway, clock=clock, timeout_s=10)
    await full.wait(1)
    clock.advance(10)
    answer = await within(full.posts[1])
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    await within(full.posts[0])
    assert len(full.replica.calls) == 1


async def test_who_leaves_gives_up_its_place_in_the_queue(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full = await make_full(backend, gateway, admission={"max_waiting": 2})
    client = await full.running.connect()
    client.post({"model": "m", "n": 1})
    await full.running.until_waiting()
    await full.wait(2)
    client.leave()
    await full.running.until_waiting(1)
    await full.wait(3)
    full.gate.let(3)
    assert set((await full.statuses()).values()) == {200}
    assert full.gate.served == [0, 2, 3]


async def test_who_leaves_just_when_it_is_its_turn_takes_no_place_with_it(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full = await make_full(backend, gateway)
    client = await full.running.connect()
    client.post({"model": "m", "n": 1})
    await full.running.until_waiting()
    await full.wait(2)
    under_way = full.running.app.forwarder.under_way
    _, leaving, _ = sorted(under_way, key=lambda exchange: exchange.life.arrived_s)
    full.running.replica().in_flight -= 1
    full.running.app.fleet.on_change()  # the place is promised, and its task has not run yet
    leaving.client_gone()
    full.running.replica().in_flight += 1
    full.gate.let(2)
    client.leave()
    assert set((await full.statuses()).values()) == {200}
    assert full.gate.served == [0, 2]


# Streams that wait


async def stream_answer(call: Call) -> None:
    await call.begin(SSE)
    await call.write(event("a"))
    await call.end(DONE)


async def test_a_stream_that_waits_long_is_kept_alive_and_then_served(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([], admission={"keep_alive_s": 0.01})
    client = await running.connect()
    client.post(STREAM)
    head = await client.head()
    assert head.status == 200
    assert head.header("content-type") == "text/event-stream; charset=utf-8"
    assert head.header("x-request-id")
    assert await client.chunk() == COMMENT
    assert await client.chunk() == COMMENT
    running.set_members([await backend(stream_answer)])
    body = b""
    while data := await client.chunk():
        body += data
    assert body.replace(COMMENT, b"") == event("a") + DONE
    await running.until_ended("completed", 200)


async def test_a_stream_that_waits_shortly_has_its_replicas_own_head(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([], admission={"keep_alive_s": 60})
    client = await running.connect()
    client.post(STREAM)
    await running.until_held()
    running.set_members([await backend(stream_answer)])
    answer = await client.answer()
    assert answer.header("target-replica") == "m-0"
    assert answer.body == event("a") + DONE


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "m"}),
        ("/v1/embeddings", {"model": "m", "input": "x", "stream": True}),
    ],
)
async def test_what_is_no_stream_gets_nothing_before_its_answer(
    backend: MakeBackend, gateway: MakeGateway, path: str, body: dict[str, Any]
) -> None:
    running = await gateway([], admission={"keep_alive_s": 0.001})
    post = asyncio.create_task(running.post(body, path))
    await running.until_held()
    await asyncio.sleep(0.02)
    running.set_members([await backend()])
    answer = await within(post)
    assert answer.json() == body


async def test_a_stream_that_was_kept_alive_and_waits_too_long_ends_with_one_error(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    running = await gateway(
        [], clock=clock, wait_for_replica_s=30, admission={"keep_alive_s": 0.01}
    )
    client = await running.connect()
    client.post(STREAM)
    await client.head()
    await client.chunk()
    clock.advance(30)
    body = b""
    while data := await client.chunk():
        body += data
    frame, done, end = body.replace(COMMENT, b"").split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "no_ready_replica"
    await running.until_ended("failed", 503)


async def test_a_stream_that_was_kept_alive_has_its_engines_refusal_as_an_event(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(b'{"error":\n {"message": "too long"}}', status=400, headers=[JSON])

    running = await gateway([], admission={"keep_alive_s": 0.01})
    client = await running.connect()
    client.post(STREAM)
    await client.head()
    await client.chunk()
    running.set_members([await backend(refuse)])
    body = b""
    while data := await client.chunk():
        body += data
    assert body.replace(COMMENT, b"") == b'data: {"error":  {"message": "too long"}}\n\n' + DONE
    await running.until_ended("client_error", 400)


async def test_a_stream_that_was_kept_alive_goes_on_elsewhere_or_ends_with_one_error(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def die(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("a"))
        death = asyncio.create_task(dying.kill())
        await call.until_disconnect()
        await death

    dying = await backend(die)
    running = await gateway([], admission={"keep_alive_s": 0.01})
    client = await running.connect()
    client.post(STREAM)
    await client.head()
    await client.chunk()
    running.set_members([dying])
    body = b""
    while data := await client.chunk():
        body += data
    assert_ends_with_one_error(body.replace(COMMENT, b""), before=event("a"))


async def test_a_client_that_leaves_a_kept_alive_stream_leaves_nothing_behind(
    gateway: MakeGateway,
) -> None:
    running = await gateway([], admission={"keep_alive_s": 0.01})
    client = await running.connect()
    client.post(STREAM)
    await client.head()
    client.leave()
    await running.until_waiting(0)
    await running.until_ended("cancelled", 499)


# What operators see


async def test_the_queue_is_in_the_metrics(backend: MakeBackend, gateway: MakeGateway) -> None:
    full = await make_full(backend, gateway, admission={"max_waiting": 3})
    await full.wait(1, 2)
    samples = await full.running.samples()
    model = (("model", "m"),)
    assert samples["aibrix_ray_queue_waiting_requests", model] == 2
    assert samples["aibrix_ray_queue_capacity_requests", model] == 3
    assert samples["aibrix_ray_held_requests", model] == 0
    full.gate.let(3)
    await full.statuses()
    samples = await full.running.samples()
    assert samples["aibrix_ray_queue_waiting_requests", model] == 0
    assert samples["aibrix_ray_queue_wait_seconds_count", model] == 2


# Whatever happens


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_however_requests_come_and_go(
    backend: MakeBackend, gateway: MakeGateway, seed: int
) -> None:
    chance = random.Random(seed)

    async def handler(call: Call) -> None:
        for _ in range(chance.randrange(20)):
            await asyncio.sleep(0)
        await call.answer(call.body, headers=[JSON])

    async def leaving(n: int) -> None:
        client = await running.connect()
        client.post({"model": "m", "n": n})
        for _ in range(chance.randrange(100)):
            await asyncio.sleep(0)
        client.leave()

    async def staying(n: int) -> int:
        return (await running.post({"model": "m", "n": n})).status_code

    replicas = [await backend(handler), await backend(handler)]
    running = await gateway(replicas, max_outstanding=2)
    requests = [leaving(n) if chance.random() < 0.4 else staying(n) for n in range(100)]
    answers = await within(asyncio.gather(*requests), 60.0)
    assert {answer for answer in answers if answer is not None} == {200}
    await running.until_idle()
    queue = running.app.pipeline.models["m"].queue
    assert (len(queue), queue.line, queue.promised) == (0, 0, 0)


# Four times the load


@pytest.fixture
async def engines(socket_dir: Path) -> AsyncIterator[list[tuple[SimulatedEngine, Address]]]:
    """Two simulated engines on sockets, in real time, each of which runs four requests at once."""
    made: list[tuple[SimulatedEngine, Address]] = []
    servers = []
    for name in ("m-0", "m-1"):
        engine = make_engine(
            sleep=asyncio.sleep,
            identity=ReplicaIdentity(replica_id=name, group="m", model="m", epoch=""),
            profile="L4",
            speed=20.0,
            max_num_seqs=4,
        )
        await engine.start()
        app = ReplicaApp(engine.openai_app(), paths=FORWARDED_PATHS)
        server = HttpServer(app, keep_alive_s=60, limits=REPLICA_LIMITS)
        uds = str(socket_dir / f"{name}.sock")
        await server.listen(unix_socket(uds))
        made.append((engine, Address(uds=uds)))
        servers.append(server)
    yield made
    for engine, _ in made:
        await engine.stop()
    for server in servers:
        await server.close()


async def test_of_four_times_the_load_what_is_not_served_is_429_with_retry_after(
    engines: list[tuple[SimulatedEngine, Address]], gateway: MakeGateway
) -> None:
    """No 500, no 503, no deadline, and no replica ever holds more than it may."""
    running = await gateway(
        [address for _, address in engines], max_outstanding=4, admission={"max_waiting": 8}
    )
    body = {"model": "m", "prompt": "a b c", "max_tokens": 8}
    most = 0
    statuses: Counter[int] = Counter()

    async def client() -> None:
        nonlocal most
        for _ in range(10):
            answer = await running.post(body, "/v1/completions")
            statuses[answer.status_code] += 1
            most = max(most, *(r.in_flight for r in running.app.fleet.replicas("m")))
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(0.005)
            else:
                assert answer.json()["usage"]["completion_tokens"] > 0

    # Eight places and eight who wait: sixteen are in, four times as many ask.
    await within(asyncio.gather(*(client() for _ in range(64))), 60.0)
    assert statuses.keys() == {200, 429}
    assert most <= 4
    await running.until_idle()
