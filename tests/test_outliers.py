"""Who is left out, on a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest

from aibrix_ray.outliers import Outliers, OutlierSettings, Silence
from aibrix_ray.types import ReplicaStats, ReplicaView

SETTINGS: dict[str, Any] = {
    "consecutive_failures": 3,
    "failure_share": 0.5,
    "min_requests": 10,
    "window_s": 30.0,
    "ejection_s": 5.0,
    "max_ejection_s": 12.0,
}


class World:
    """Replicas `r0`, `r1`, … of one model; the time is `now_s`."""

    def __init__(self, count: int = 4, **settings: Any) -> None:
        self.replicas = [ReplicaView(f"r{i}", "g", "m") for i in range(count)]
        self.outliers = Outliers(OutlierSettings(**{**SETTINGS, **settings}))
        self.outliers.keep(self.replicas)
        self.now_s = 100.0
        self.outliers.tick(self.now_s)

    def fail(self, index: int = 0, times: int = 1) -> bool:
        changed = [self.outliers.failed(self.replicas[index], self.now_s) for _ in range(times)]
        return any(changed)

    def answer(self, index: int = 0, times: int = 1, ttfb_s: float | None = None) -> bool:
        changed = [self.outliers.answered(self.replicas[index], ttfb_s) for _ in range(times)]
        return any(changed)

    def tick(self, seconds: float = 0.0) -> bool:
        self.now_s += seconds
        return self.outliers.tick(self.now_s)

    @property
    def out(self) -> list[int]:
        return [i for i, r in enumerate(self.replicas) if self.outliers.is_out(r)]

    @property
    def probes(self) -> list[int]:
        return [self.replicas.index(r) for r in self.outliers.probes]

    def probe(self, index: int = 0) -> None:
        self.outliers.probe(self.replicas[index])


# What ejects


def test_failures_in_a_row_eject() -> None:
    world = World()
    assert not world.fail(times=2)
    assert world.out == []
    assert world.fail()
    assert world.out == [0]
    assert world.outliers.out == 1


def test_an_answer_between_them_begins_the_count_anew() -> None:
    world = World(failure_share=1.0)
    for _ in range(20):
        world.fail(times=2)
        world.answer()
    assert world.out == []


def test_a_share_of_failures_ejects_once_there_were_enough_requests() -> None:
    world = World(consecutive_failures=100)
    for _ in range(4):
        world.answer()
        world.fail()
    assert world.out == [], "eight requests are too few to tell"
    world.answer()
    assert world.fail()
    assert world.out == [0]


def test_failures_are_forgotten_after_the_window() -> None:
    world = World(consecutive_failures=100)
    world.fail(times=9)
    world.tick(15.0)
    world.tick(15.0)
    world.answer()
    world.fail()
    assert world.out == []


def test_answers_alone_eject_nobody_whatever_they_were() -> None:
    world = World()
    world.answer(times=1000)  # 4xx and 429 are answers too
    assert world.out == []


def test_no_more_than_a_share_of_the_replicas_is_out() -> None:
    world = World(4, max_ejected_share=0.5)
    for index in range(4):
        world.fail(index, times=3)
    assert world.out == [0, 1]
    world.tick(5.0)
    world.probe(0)
    world.answer(0)
    assert world.fail(2), "another one's turn, which has failed all the time"
    assert world.out == [1, 2]


@pytest.mark.parametrize(("count", "share", "out"), [(1, 0.5, 0), (2, 0.5, 1), (3, 0.0, 0)])
def test_a_share_is_rounded_down(count: int, share: float, out: int) -> None:
    world = World(count, max_ejected_share=share)
    for index in range(count):
        world.fail(index, times=5)
    assert len(world.out) == out


def test_who_is_not_known_is_not_judged() -> None:
    world = World()
    stranger = ReplicaView("s", "g", "m")
    for _ in range(10):
        assert not world.outliers.failed(stranger, world.now_s)
    assert not world.outliers.answered(stranger)
    assert not world.outliers.overdue(stranger, 100.0, world.now_s)
    world.outliers.inconclusive(stranger)
    assert not world.outliers.is_out(stranger)


def test_a_replica_that_has_gone_is_forgotten_and_its_namesake_begins_anew() -> None:
    world = World()
    world.fail(times=3)
    world.tick(5.0)
    assert world.probes == [0]
    world.replicas[0] = ReplicaView("r0", "g", "m")
    world.outliers.keep(world.replicas)
    assert (world.out, world.probes) == ([], [])


# The way back


def test_after_the_ejection_one_request_decides() -> None:
    world = World()
    world.fail(times=3)
    world.tick(4.9)
    assert world.probes == []
    world.tick(0.1)
    world.tick()
    assert world.probes == [0], "once, however often it is looked at"
    world.probe()
    world.tick(1.0)
    assert (world.probes, world.out) == ([], [0]), "no second request while the first is under way"
    assert world.answer()
    assert world.out == []


def test_a_probe_that_fails_ejects_for_twice_as_long_up_to_the_longest() -> None:
    world = World()
    world.fail(times=3)
    for out_s in (5.0, 10.0, 12.0, 12.0):
        world.tick(out_s - 0.1)
        assert world.probes == []
        world.tick(0.1)
        world.probe()
        assert not world.fail(), "it was out before, too"
        assert world.out == [0]


def test_a_probe_whose_client_left_is_sent_again() -> None:
    world = World()
    world.fail(times=3)
    world.tick(5.0)
    world.probe()
    world.outliers.inconclusive(world.replicas[0])
    assert (world.probes, world.out) == ([0], [0])


def test_a_client_that_leaves_says_nothing_of_a_replica_in_service() -> None:
    world = World()
    world.outliers.inconclusive(world.replicas[0])
    assert world.probes == []


def test_what_began_before_the_ejection_does_not_decide() -> None:
    world = World()
    world.fail(times=3)
    assert not world.answer()
    assert world.out == [0]
    assert not world.fail(times=10)
    world.tick(5.0)
    assert world.probes == [0], "later failures of old requests do not make it longer"


def test_who_is_back_begins_with_a_clean_slate() -> None:
    world = World()
    world.fail(times=3)
    world.tick(5.0)
    world.probe()
    world.answer()
    assert not world.fail(times=2)
    assert world.fail()


def test_a_good_window_makes_the_next_ejection_a_first_one() -> None:
    world = World()
    world.fail(times=3)
    world.tick(5.0)
    world.probe()
    world.answer()
    world.answer()
    world.tick(15.0)
    world.fail(times=3)
    world.tick(5.0)
    assert world.probes == [0]


# Latency


def measure(world: World, *means_s: float) -> None:
    for index, mean_s in enumerate(means_s):
        world.answer(index, times=10, ttfb_s=mean_s)


@pytest.mark.parametrize(
    ("means_s", "out"),
    [
        ((0.1, 0.1, 0.1, 0.31), [3]),
        ((0.1, 0.1, 0.1, 0.29), []),
        ((0.1, 1.0), [1]),
        ((1.0, 1.0), []),
        ((5.0,), []),
    ],
)
def test_a_replica_that_is_much_slower_than_its_siblings_is_out(
    means_s: tuple[float, ...], out: list[int]
) -> None:
    world = World(len(means_s), latency_factor=3.0)
    measure(world, *means_s)
    world.tick(0.25)
    assert world.out == out


def test_latency_ejects_nobody_by_default() -> None:
    world = World()
    measure(world, 0.1, 0.1, 0.1, 100.0)
    assert not world.tick(0.25)
    assert not world.outliers.overdue(world.replicas[0], 1000.0, world.now_s)
    assert world.out == []


def test_too_few_answers_say_nothing_about_latency() -> None:
    world = World(latency_factor=3.0)
    measure(world, 0.1, 0.1, 0.1)
    world.answer(3, times=9, ttfb_s=100.0)
    world.tick(0.25)
    assert world.out == []


def test_one_request_that_waits_far_too_long_is_enough() -> None:
    world = World(latency_factor=3.0)
    measure(world, 0.1, 0.1, 0.1, 0.1)
    world.tick(0.25)
    assert not world.outliers.overdue(world.replicas[3], 0.29, world.now_s)
    assert world.outliers.overdue(world.replicas[3], 0.31, world.now_s)
    assert world.out == [3]
    assert not world.outliers.overdue(world.replicas[3], 0.4, world.now_s), "out already"


def test_a_probe_that_is_overdue_has_failed() -> None:
    world = World(latency_factor=3.0)
    measure(world, 0.1, 0.1, 0.1, 0.1)
    world.tick(0.25)
    world.outliers.overdue(world.replicas[3], 1.0, world.now_s)
    world.tick(5.0)
    world.probe(3)
    world.outliers.overdue(world.replicas[3], 1.0, world.now_s)
    world.tick(9.0)
    assert world.probes == []
    world.tick(1.0)
    assert world.probes == [3]


# Silence


def make_view(name: str, progress_s: float | None) -> ReplicaView:
    view = ReplicaView(name, "g", "m")
    if progress_s is not None:
        view.stats = ReplicaStats(name, "g", "m", "e", 1, running=1, waiting=0)
        view.progress_s = progress_s
    return view


@pytest.mark.parametrize(
    ("progress_s", "stuck"),
    [
        ((100.0, 100.0, 94.9), [2]),
        ((100.0, 100.0, 95.0), []),
        ((100.0, 10.0, 10.0), [1, 2]),
        ((90.0, 90.0, 90.0), []),
        ((90.0, None), []),
        ((100.0, None), []),
        ((None, None), []),
        ((90.0,), []),
    ],
    ids=[
        "one is stuck",
        "not for long enough",
        "one works",
        "no reports come",
        "a new one says nothing yet",
        "a new one is not judged",
        "nobody reports here",
        "alone",
    ],
)
def test_silence_is_told_by_the_siblings(
    progress_s: tuple[float | None, ...], stuck: list[int]
) -> None:
    views = [make_view(f"r{i}", each) for i, each in enumerate(progress_s)]
    silence = Silence()
    silence.find([make_view("r", 90.0)], 5.0, 90.0)  # there was somebody all the time
    assert silence.find(views, 5.0, 100.0) == [views[i] for i in stuck]


def test_after_a_time_without_any_reports_everybody_has_the_whole_time_again() -> None:
    views = [make_view(f"r{i}", 0.0) for i in range(3)]
    silence = Silence()
    for now_s in (0.0, 2.0, 10.0, 20.0):
        assert silence.find(views, 5.0, now_s) == []
    for now_s in (21.0, 23.0, 25.0, 26.0):
        views[0].progress_s = now_s
        assert silence.find(views, 5.0, now_s) == [], "the others' reports are on their way"
    views[0].progress_s = 26.1
    views[1].progress_s = 22.0
    assert silence.find(views, 5.0, 26.1) == [views[2]]
