from __future__ import annotations

import asyncio

from aibrix_ray.telemetry import TelemetryStore, Update, Version, wire
from aibrix_ray.telemetry.hub import MIN_PERIOD_S, Hub
from aibrix_ray.types import ReplicaStats
from tests.telemetry.figures import make_fleet, make_group, make_stats

LONG_S = 20.0


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_hub(
    clock: Clock | None = None, *, coalesce_s: float = 0.0, settle_s: float = 0.0
) -> tuple[Hub, Clock]:
    clock = clock or Clock()
    hub = Hub(TelemetryStore("one"), clock=clock, coalesce_s=coalesce_s, settle_s=settle_s)
    return hub, clock


def make_batch(*stats: ReplicaStats) -> bytes:
    return wire.encode_batch(wire.encode_stats(s) for s in stats)


async def poll(hub: Hub, since: Version | None, timeout_s: float = LONG_S) -> Update:
    async with asyncio.timeout(5):
        return wire.decode_update(await hub.poll(since, timeout_s))


async def begin_poll(hub: Hub, since: Version | None) -> asyncio.Task[Update]:
    before = hub.statistics().waiting_polls
    task = asyncio.create_task(poll(hub, since))
    while hub.statistics().waiting_polls == before and not task.done():
        await asyncio.sleep(0)
    return task


async def test_a_first_poll_is_answered_at_once_with_everything() -> None:
    hub, _ = make_hub()
    update = await poll(hub, None)
    assert (update.full, update.replicas, update.groups) == (True, (), ())


async def test_a_poll_waits_for_the_next_change() -> None:
    hub, _ = make_hub()
    waiting = await begin_poll(hub, (await poll(hub, None)).version)
    assert not waiting.done()
    hub.report(make_batch(make_stats()))
    assert (await waiting).replicas == (make_stats(),)


async def test_a_poll_for_what_it_missed_is_answered_at_once() -> None:
    hub, _ = make_hub()
    since = (await poll(hub, None)).version
    waiting = await begin_poll(hub, since)
    hub.report(make_batch(make_stats()))
    await waiting
    assert (await poll(hub, since)).replicas == (make_stats(),)


async def test_a_poll_without_news_ends_empty() -> None:
    hub, _ = make_hub()
    since = (await poll(hub, None)).version
    assert await poll(hub, since, 0.01) == Update(since, full=False)


async def test_changes_within_the_interval_are_one_wake_up() -> None:
    hub, clock = make_hub(coalesce_s=0.05)
    first = await begin_poll(hub, (await poll(hub, None)).version)
    hub.report(make_batch(make_stats("r0")))
    since = (await first).version
    second = await begin_poll(hub, since)
    for i in range(1, 6):
        hub.report(make_batch(make_stats(f"r{i}")))
        await asyncio.sleep(0)
    assert not second.done()
    clock.now_s += 0.05
    assert len((await second).replicas) == 5
    assert hub.statistics().wake_ups == 2


async def test_a_poll_is_not_answered_with_nothing_by_a_wake_up_for_what_it_knows() -> None:
    hub, _ = make_hub(coalesce_s=0.05)
    since = (await poll(hub, None)).version
    first = await begin_poll(hub, since)
    hub.report(make_batch(make_stats("r0")))
    await first
    hub.report(make_batch(make_stats("r1")))  # Published only after the interval.
    waiting = await begin_poll(hub, (await poll(hub, since)).version)
    async with asyncio.timeout(5):
        while hub.statistics().wake_ups < 2:
            await asyncio.sleep(0)
    hub.report(make_batch(make_stats("r2")))
    assert [s.replica_id for s in (await waiting).replicas] == ["r2"]


async def test_followers_at_the_same_version_share_one_answer() -> None:
    hub, _ = make_hub()
    since = (await poll(hub, None)).version
    polls = [asyncio.create_task(hub.poll(since, LONG_S)) for _ in range(3)]
    await begin_poll(hub, since)
    hub.report(make_batch(*make_fleet(10)))
    answers = await asyncio.gather(*polls)
    assert answers[0] is answers[1] is answers[2]


async def test_a_young_hub_lets_reporters_come_before_it_answers_old_followers() -> None:
    hub, _ = make_hub(settle_s=0.05)
    waiting = await begin_poll(hub, Version("predecessor", 77))
    hub.report(make_batch(make_stats()))
    update = await waiting
    assert (update.full, update.replicas) == (True, (make_stats(),))


async def test_a_report_carries_groups_and_is_told_incarnation_and_period() -> None:
    hub, _ = make_hub()
    groups = wire.encode_batch([wire.encode_group(make_group())])
    reply = hub.report(make_batch(make_stats()), groups)
    assert (reply.incarnation, reply.period_s) == ("one", MIN_PERIOD_S)
    assert (await poll(hub, None)).groups == (make_group(),)
    assert hub.report(make_batch(*make_fleet(1000))).period_s > 0.5


async def test_an_unheard_replica_wakes_followers() -> None:
    hub, clock = make_hub()
    hub.report(make_batch(make_stats()))
    waiting = await begin_poll(hub, (await poll(hub, None)).version)
    clock.now_s += 11
    hub.expire()
    assert (await waiting).removed == ("r1",)


async def test_reports_registrations_and_polls_are_signs_of_life_and_looking_is_not() -> None:
    hub, clock = make_hub()
    for sign in (
        lambda: hub.report(make_batch(make_stats())),
        lambda: hub.register_group(make_group()),
        lambda: hub.restore_groups([make_group()]),
    ):
        clock.now_s += 61
        assert hub.idle_s() == 61
        sign()
        assert hub.idle_s() == 0
    clock.now_s += 61
    hub.snapshot(), hub.group_windows(), hub.replica_windows(), hub.applications_alive(["g"])
    hub.deregister_group("g")
    assert hub.idle_s() == 61
    await poll(hub, None)
    assert hub.idle_s() == 0


async def test_windows_are_read_by_name() -> None:
    hub, clock = make_hub()
    hub.register_group(make_group("idle"))
    hub.report(make_batch(make_stats(requests_total=0)))
    clock.now_s += 2
    hub.report(make_batch(make_stats(sequence=2, requests_total=8)))
    groups = {w.name: w for w in wire.decode_windows(hub.group_windows())}
    assert (groups["g"].requests_per_s, groups["idle"].requests_per_s) == (4, None)
    (replica,) = wire.decode_windows(hub.replica_windows())
    assert (replica.name, replica.requests_per_s) == ("r1", 4)


async def test_very_many_followers_are_woken_less_often() -> None:
    hub, _ = make_hub()
    since = (await poll(hub, None)).version
    polls = [await begin_poll(hub, since) for _ in range(100)]
    hub.report(make_batch(make_stats("r1")))
    since = (await asyncio.gather(*polls))[0].version
    waiting = await begin_poll(hub, since)
    hub.report(make_batch(make_stats("r2")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()  # 100 followers: 0.2 s, on the loop's clock.
    assert [s.replica_id for s in (await waiting).replicas] == ["r2"]
