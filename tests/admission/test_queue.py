"""Who waits, who is refused, and whose a free place is."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aibrix_ray.admission import AdmissionQueue, PriorityWithAging, Ticket


def make_queue(capacity: int = 10) -> AdmissionQueue:
    return AdmissionQueue(PriorityWithAging(aging_s=10.0), capacity=capacity)


def fill(queue: AdmissionQueue, *priorities: int) -> list[Ticket]:
    """Let tickets wait that arrive one after the other."""
    tickets = [Ticket(float(at_s), priority=each) for at_s, each in enumerate(priorities)]
    for ticket in tickets:
        assert queue.wait(ticket) is None
    return tickets


# Who is refused


def test_with_no_room_the_newest_of_the_lowest_priority_is_refused() -> None:
    queue = make_queue(4)
    fill(queue, 1, 0, 0, 2)
    high = Ticket(10.0, priority=1)
    refused = queue.wait(high)
    assert refused is not None
    assert (refused.arrived_s, refused.priority) == (2.0, 0)
    assert len(queue) == 4


def test_who_comes_into_a_full_queue_of_its_betters_is_refused_itself() -> None:
    queue = make_queue(2)
    fill(queue, 0, 0)
    for priority in (0, -1):
        ticket = Ticket(10.0, priority=priority)
        assert queue.wait(ticket) is ticket
    assert len(queue) == 2


def test_nobody_waits_in_a_queue_of_nothing() -> None:
    queue = make_queue(0)
    ticket = Ticket(0.0)
    assert queue.wait(ticket) is ticket
    assert (len(queue), queue.line) == (0, 0)


def test_who_stands_aside_is_counted_and_may_be_refused() -> None:
    queue = make_queue(2)
    aside, waiting = Ticket(0.0), Ticket(1.0)
    assert queue.wait(aside, aside=True) is None
    assert queue.wait(waiting) is None
    assert queue.wait(Ticket(2.0, priority=1)) is waiting
    assert queue.wait(Ticket(3.0, priority=1)) is aside
    assert queue.aside == 0


def test_a_smaller_queue_keeps_who_waits_and_refuses_who_comes() -> None:
    queue = make_queue(5)
    tickets = fill(queue, 0, 0, 0)
    queue.capacity = 1
    late = Ticket(10.0)
    assert queue.wait(late) is late
    assert queue.admit(9, 0.0) == tickets


# Places


def test_a_place_is_promised_once() -> None:
    queue = make_queue()
    first, second, third = fill(queue, 0, 0, 0)
    assert queue.admit(2, 0.0) == [first, second]
    assert queue.admit(2, 0.0) == []
    assert (queue.promised, queue.line, len(queue)) == (2, 3, 1)
    queue.settle(first)  # it has taken its place: one less is free now
    assert queue.admit(1, 0.0) == []
    queue.settle(second)
    assert queue.admit(1, 0.0) == [third]
    queue.settle(third)
    assert queue.line == 0


def test_who_goes_away_gives_up_its_place() -> None:
    queue = make_queue()
    first, second = fill(queue, 0, 0)
    assert queue.admit(1, 0.0) == [first]
    queue.leave(first)
    assert queue.admit(1, 0.0) == [second]
    queue.leave(second)
    assert (queue.line, queue.promised, len(queue)) == (0, 0, 0)


def test_who_stands_aside_is_not_admitted_before_a_change() -> None:
    queue = make_queue()
    aside, waiting = Ticket(0.0), Ticket(1.0)
    queue.wait(aside, aside=True)
    queue.wait(waiting)
    assert queue.line == 1, "a request that has just arrived does not wait behind it"
    assert queue.admit(5, 0.0) == [waiting]
    queue.settle(waiting)
    queue.changed()
    assert (queue.aside, queue.line) == (0, 1)
    assert queue.admit(5, 0.0) == [aside]


def test_another_discipline_takes_over_who_waits() -> None:
    queue = make_queue()
    old, new = fill(queue, 0, 1)
    queue.use(PriorityWithAging(aging_s=0.1))
    assert [queue.ahead_of(old), queue.ahead_of(new)] == [0, 1]
    assert queue.admit(2, 0.0) == [old, new]


# Deadlines


@pytest.mark.parametrize("aside", [False, True])
def test_who_has_waited_in_vain_is_taken_out_at_its_deadline(aside: bool) -> None:
    queue = make_queue()
    late, later, never = (Ticket(0.0, deadline_s=at_s) for at_s in (2.0, 1.0, float("inf")))
    for ticket in (late, later, never):
        queue.wait(ticket, aside=aside)
    assert queue.expire(0.9) == []
    assert queue.expire(2.0) == [later, late]
    queue.changed()
    assert queue.admit(9, 2.0) == [never]


def test_a_promise_has_no_deadline() -> None:
    queue = make_queue()
    ticket = Ticket(0.0, deadline_s=1.0)
    queue.wait(ticket)
    queue.admit(1, 0.5)
    assert queue.expire(5.0) == []
    assert queue.line == 1


class Waiting(RuleBasedStateMachine):
    """Whatever happens, each ticket is in one place, and all bounds hold."""

    CAPACITY = 5

    def __init__(self) -> None:
        super().__init__()
        self.queue = make_queue(self.CAPACITY)
        self.now_s = 0.0
        self.waiting: set[Ticket] = set()
        self.promised: set[Ticket] = set()

    @rule(priority=st.integers(0, 2), patience_s=st.integers(1, 20), aside=st.booleans())
    def wait(self, priority: int, patience_s: int, aside: bool) -> None:
        self.now_s += 0.5
        ticket = Ticket(self.now_s, self.now_s + patience_s, priority=priority)
        refused = self.queue.wait(ticket, aside=aside)
        self.waiting.add(ticket)
        if len(self.waiting) <= self.CAPACITY:
            assert refused is None
        else:
            worst = max(self.waiting, key=lambda t: (-t.priority, t.arrived_s))
            assert refused is worst
            self.waiting.remove(worst)

    @rule(places=st.integers(0, 4))
    def admit(self, places: int) -> None:
        admitted = self.queue.admit(places, self.now_s)
        assert len(admitted) <= max(0, places - len(self.promised))
        self._move(admitted)

    @rule()
    def changed(self) -> None:
        self.queue.changed()
        assert self.queue.aside == 0
        admitted = self.queue.admit(100, self.now_s)
        assert set(admitted) == self.waiting, "who waits is found by a fleet that is large enough"
        self._move(admitted)

    @precondition(lambda self: self.promised)
    @rule()
    def settle(self) -> None:
        self.queue.settle(self.promised.pop())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting, key=lambda t: t.arrived_s)))
        self.queue.leave(ticket)
        self.waiting.remove(ticket)

    @rule(seconds=st.integers(0, 10))
    def expire(self, seconds: int) -> None:
        self.now_s += seconds
        late = self.queue.expire(self.now_s)
        assert set(late) == {t for t in self.waiting if t.deadline_s <= self.now_s}
        self.waiting -= set(late)

    @invariant()
    def everything_is_counted(self) -> None:
        queue = self.queue
        assert len(queue) == len(self.waiting) <= self.CAPACITY
        assert queue.promised == len(self.promised)
        assert queue.line == len(queue) - queue.aside + queue.promised

    def _move(self, admitted: Iterable[Ticket]) -> None:
        self.waiting -= set(admitted)
        self.promised |= set(admitted)


TestWaiting = Waiting.TestCase
