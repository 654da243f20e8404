"""Replicas that fail or hang: they are left out, what can be saved goes elsewhere, they come back.

A stopped process (SIGSTOP) is a socket that listens and is never read: connections are accepted by
the kernel, nothing is ever answered. `tests/chaos/` stops real processes.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aibrix_ray.dataplane.channel import Address
from aibrix_ray.types import Ending, ReplicaStats
from tests.dataplane.backends import DONE, JSON, SSE, Call, MakeBackend, echo, event, hang
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.test_resume import Continuing
from tests.dataplane.test_retries import FIRST, first_policy
from tests.dataplane.waiting import Clock, eventually, within

#: Telemetry's reports come every second at the latest.
PERIOD_S = 1.0


@pytest.fixture
def stopped(socket_dir: Path) -> Iterator[Address]:
    """The address of a replica whose process is stopped."""
    path = str(socket_dir / "stopped.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1000)
        yield Address(uds=path)


class Reports:
    """Hands the gateway what replicas report, at the time that its clock shows."""

    def __init__(self, running: Gateway, clock: Clock) -> None:
        self._running = running
        self._clock = clock
        self._tokens: Counter[int] = Counter()

    def come(self, *indexes: int, progress: bool = True, running: int = 1) -> None:
        if progress:
            self._tokens.update(indexes)
        fleet = self._running.app.fleet
        stats = [
            ReplicaStats(
                f"m-{i}", "m", "m", "", 1, running, 0, generation_tokens_total=self._tokens[i]
            )
            for i in indexes
        ]
        fleet.apply_stats(stats, self._clock())

    async def pass_by(self, seconds: float, *indexes: int, **report: Any) -> None:
        """Let time pass in which these replicas report, and let the gateway look at it."""
        for _ in range(round(seconds / PERIOD_S)):
            self._clock.advance(PERIOD_S)
            self.come(*indexes, **report)
            await self._clock.looked_at()


# A replica that hangs (U17)


async def test_requests_to_the_others_go_on_and_those_of_the_stuck_one_move(
    stopped: Address, backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U17."""
    clock = Clock()
    running = await gateway([stopped, await backend(), await backend()], clock=clock)
    reports = Reports(running, clock)
    reports.come(0, 1, 2)
    posts = [asyncio.create_task(running.post()) for _ in range(9)]
    await eventually(lambda: sum(p.done() for p in posts) == 6, "those of the other two are done")
    assert running.replica().in_flight == 3
    await reports.pass_by(7, 1, 2)
    assert {(await within(post)).status_code for post in posts} == {200}
    assert running.ready == ["m-1", "m-2"]
    for _ in range(6):
        assert (await within(running.post())).headers["target-replica"] != "m-0"
    samples = await running.samples()
    assert samples["aibrix_ray_ejected_replicas", (("model", "m"),)] == 1
    assert samples["aibrix_ray_stale_replicas", (("model", "m"),)] == 1


async def test_it_is_back_once_it_reports_and_its_probe_is_answered(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U17, a neighbour: SIGCONT."""
    clock = Clock()
    awake = asyncio.Event()

    async def sleeper(call: Call) -> None:
        if not awake.is_set():
            await hang(call)
        else:
            await echo(call)

    running = await gateway(
        [await backend(sleeper), await backend(), await backend()],
        clock=clock,
        routing=FIRST,
        outliers={"consecutive_failures": 1},
    )
    reports = Reports(running, clock)
    reports.come(0, 1, 2)
    post = asyncio.create_task(running.post())
    await eventually(lambda: running.replica().in_flight == 1, "it is asked")
    await reports.pass_by(7, 1, 2)
    assert (await within(post)).headers["target-replica"] == "m-1"
    awake.set()
    await reports.pass_by(7, 0, 1, 2)
    assert (await within(running.post())).headers["target-replica"] == "m-0", "the probe"
    assert running.ready == ["m-0", "m-1", "m-2"]


async def test_without_siblings_a_stuck_replica_keeps_its_requests_until_their_deadline(
    stopped: Address, gateway: MakeGateway
) -> None:
    """U17, a neighbour: there is nobody to tell a stuck replica from a quiet network."""
    clock = Clock()
    running = await gateway([stopped], clock=clock, first_byte_timeout_s=30)
    Reports(running, clock).come(0)
    post = asyncio.create_task(running.post())
    await eventually(lambda: running.in_flight > 0, "it is asked")
    clock.advance(29)
    await clock.looked_at()
    assert not post.done()
    assert running.ready == ["m-0"]
    clock.advance(2)
    assert (await within(post)).status_code == 504


async def test_with_one_attempt_a_request_stays_where_it_is(
    stopped: Address, backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    running = await gateway(
        [stopped, await backend()],
        clock=clock,
        routing=FIRST,
        max_attempts=1,
        first_byte_timeout_s=30,
    )
    reports = Reports(running, clock)
    reports.come(0, 1)
    post = asyncio.create_task(running.post())
    await eventually(lambda: running.in_flight > 0, "it is asked")
    await reports.pass_by(7, 1)
    assert not post.done()
    await reports.pass_by(25, 1)
    assert (await within(post)).status_code == 504


async def test_a_stream_of_a_stuck_replica_goes_on_elsewhere(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def pause(call: Call) -> None:
        await call.begin(SSE)
        await call.write(b":=3,0\n:+11\n" + event("a"))
        await call.until_disconnect()

    clock = Clock()
    second = Continuing(b":=3,0\n:\n\n", b":+12\n" + event("b") + DONE)
    running = await gateway(
        [await backend(pause), await backend(second)], clock=clock, routing=FIRST
    )
    reports = Reports(running, clock)
    reports.come(0, 1)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    assert await client.chunk() == event("a")
    await reports.pass_by(7, 1)
    assert await client.chunk() == event("b") + DONE
    assert second.asked == [(b"11", b"0")]


async def test_a_stream_that_flows_is_a_sign_of_work(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U18, a neighbour: the reports of one replica are lost, and it streams."""
    go = asyncio.Queue[None]()

    async def flow(call: Call) -> None:
        await call.begin(SSE)
        await call.write(b":=3,0\n:+11\n" + event("0"))
        for i in range(1, 11):
            await go.get()
            await call.write(b":+%d\n" % (11 + i) + event(str(i)))
        await call.end(DONE)

    clock = Clock()
    running = await gateway([await backend(flow), await backend()], clock=clock, routing=FIRST)
    reports = Reports(running, clock)
    reports.come(0, 1)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    assert await client.chunk() == event("0")
    for i in range(1, 11):
        await reports.pass_by(1, 1)
        go.put_nowait(None)
        data = await client.chunk()
        assert data.removesuffix(DONE) == event(str(i))
        await clock.looked_at()
        assert running.ready == ["m-0", "m-1"]
    if not data.endswith(DONE):
        assert await client.chunk() == DONE


async def test_a_stream_that_cannot_be_carried_is_left_where_it_is(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    wake = asyncio.Event()

    async def pause(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("a"))
        await wake.wait()
        await call.end(DONE)

    clock = Clock()
    running = await gateway([await backend(pause), await backend()], clock=clock, routing=FIRST)
    reports = Reports(running, clock)
    reports.come(0, 1)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    await client.chunk()
    await reports.pass_by(7, 1)
    assert running.ready == ["m-1"]
    wake.set()
    assert await client.chunk() == DONE


# An engine that is stuck behind a process that answers (U20)


async def test_an_engine_that_makes_no_progress_gets_no_new_request(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U20: reports come, their totals stand still. What is there already may be a long prompt."""
    clock = Clock()
    stuck = await backend(hang)
    running = await gateway([stuck, await backend()], clock=clock, routing=FIRST)
    reports = Reports(running, clock)
    reports.come(0, 1)
    client = await running.connect()
    client.post({"model": "m"})
    call = await stuck.call()
    for _ in range(7):
        reports.come(0, progress=False)
        await reports.pass_by(1, 1)
    assert running.ready == ["m-1"]
    assert (await within(running.post())).headers["target-replica"] == "m-1"
    assert not call.disconnected.is_set()
    reports.come(0)
    await clock.looked_at()
    assert running.ready == ["m-0", "m-1"]
    client.leave()


async def test_an_idle_engine_is_not_stuck(backend: MakeBackend, gateway: MakeGateway) -> None:
    """U20, a neighbour: no progress, because there is nothing to do."""
    clock = Clock()
    running = await gateway([await backend(), await backend()], clock=clock)
    reports = Reports(running, clock)
    for _ in range(10):
        await reports.pass_by(1, 0, progress=False, running=0)
        reports.come(1)
    await clock.looked_at()
    assert running.ready == ["m-0", "m-1"]


async def test_time_outs_eject_a_replica_that_says_it_works(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U20, a neighbour: its reports show progress, and yet its answers do not begin."""
    clock = Clock()
    stuck = await backend(hang)
    running = await gateway(
        [stuck, await backend()],
        clock=clock,
        routing=FIRST,
        first_byte_timeout_s=10,
        outliers={"consecutive_failures": 3},
    )
    posts = [asyncio.create_task(running.post()) for _ in range(3)]
    await stuck.call(2)
    clock.advance(11)
    assert {(await within(post)).status_code for post in posts} == {504}
    assert (await within(running.post())).headers["target-replica"] == "m-1"
    assert running.ready == ["m-1"]


# Reports that do not come (U18)


async def test_without_reports_the_gateway_goes_on_by_its_own_counts(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U18: one replica, whose last report said that it is full."""
    clock = Clock()
    running = await gateway([await backend()], clock=clock, max_outstanding=8)
    reports = Reports(running, clock)
    reports.come(0, running=8)
    post = asyncio.create_task(running.post())
    await running.until_waiting()
    clock.advance(5.1)
    assert (await within(post)).status_code == 200
    for _ in range(20):
        assert (await within(running.post())).status_code == 200
    samples = await running.samples()
    assert samples["aibrix_ray_ready_replicas", (("model", "m"),)] == 1


async def test_when_all_reports_stop_all_replicas_are_used(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U18, a neighbour: a fleet without Telemetry."""
    clock = Clock()
    running = await gateway([await backend() for _ in range(3)], clock=clock)
    reports = Reports(running, clock)
    reports.come(0, 1, 2)
    clock.advance(100)
    await clock.looked_at()
    used = {(await within(running.post())).headers["target-replica"] for _ in range(9)}
    assert used == {"m-0", "m-1", "m-2"}


async def test_a_replica_that_is_heard_of_is_preferred(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U18, a neighbour: with some of the reports old, those with fresh ones are taken first."""
    clock = Clock()
    running = await gateway([await backend(), await backend()], clock=clock, max_outstanding=1)
    reports = Reports(running, clock)
    reports.come(0, 1, running=0)
    await reports.pass_by(7, 1, running=0)
    for _ in range(4):
        assert (await within(running.post())).headers["target-replica"] == "m-1"
    reports.come(1, running=1)
    assert (await within(running.post())).headers["target-replica"] == "m-0", "the last resort"
    await eventually(lambda: running.ready == ["m-0", "m-1"], "it has answered")


# Replicas that fail


async def fail(call: Call) -> None:
    await call.answer(b'{"error": {}}', status=500, headers=[JSON])


@pytest.fixture
async def failing(backend: MakeBackend, gateway: MakeGateway) -> Gateway:
    """A gateway whose first choice fails, and has been ejected for it."""
    running = await gateway(
        [await backend(fail), await backend()],
        clock=Clock(),
        routing=FIRST,
        outliers={"consecutive_failures": 3, "ejection_s": 5},
    )
    statuses = [(await running.post()).status_code for _ in range(6)]
    assert statuses == [500, 500, 500, 200, 200, 200]
    return running


async def test_a_replica_that_fails_is_ejected(failing: Gateway) -> None:
    assert failing.ready == ["m-1"]


async def test_after_its_time_it_is_asked_once(failing: Gateway) -> None:
    clock = failing.app._clock
    assert isinstance(clock, Clock)
    clock.advance(5)
    await clock.looked_at()
    statuses = [(await failing.post()).status_code for _ in range(3)]
    assert statuses == [500, 200, 200]
    clock.advance(9)
    await clock.looked_at()
    assert (await failing.post()).status_code == 200, "out for twice as long"


@pytest.mark.parametrize("status", [400, 404, 422, 429])
async def test_a_clients_errors_eject_nobody(
    backend: MakeBackend, gateway: MakeGateway, status: int
) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(b"{}", status=status, headers=[JSON])

    running = await gateway(
        [await backend(refuse), await backend()],
        routing=FIRST,
        outliers={"consecutive_failures": 1},
    )
    assert {(await running.post()).status_code for _ in range(10)} == {status}
    assert running.ready == ["m-0", "m-1"]


async def test_a_client_that_does_not_read_is_not_its_replicas_fault(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def flood(call: Call) -> None:
        await call.begin(SSE)
        while not call.disconnected.is_set():
            await call.write(event("x" * 100_000))
            await asyncio.sleep(0)

    clock = Clock()
    running = await gateway(
        [await backend(flood), await backend()],
        clock=clock,
        routing=FIRST,
        idle_timeout_s=30,
        outliers={"consecutive_failures": 1},
    )
    running.tolerate("")
    client = await running.connect(receive_buffer_bytes=4096)
    client.post({"model": "m", "stream": True})
    await eventually(
        lambda: any(c.flow.write_paused for c in running.server.connections), "the client is slow"
    )
    clock.advance(31)
    await running.until_ended("failed", 504)
    assert [o.ending for o in first_policy(running).outcomes] == [Ending.CANCELLED]
    assert running.ready == ["m-0", "m-1"]
    client.leave()


# Latency


async def test_a_stream_that_waits_far_longer_than_usual_moves_and_ejects(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()

    async def answer(call: Call) -> None:
        clock.advance(0.1)
        await call.begin(SSE)
        await call.end(event("a") + DONE)

    stuck = await backend(hang)
    running = await gateway(
        [stuck, await backend(answer), await backend(answer)],
        clock=clock,
        outliers={"latency_factor": 5.0, "min_requests": 2},
    )
    body = {"model": "m", "stream": True}
    posts = [asyncio.create_task(running.post(body)) for _ in range(6)]
    await eventually(lambda: sum(post.done() for post in posts) >= 4, "the others have answered")
    clock.advance(5.0)
    answers = [await within(post) for post in posts]
    assert {answer.status_code for answer in answers} == {200}
    assert running.ready == ["m-1", "m-2"]
