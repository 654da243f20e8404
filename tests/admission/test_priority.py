"""Priority classes with aging."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.admission import PriorityWithAging, Ticket

AGING_S = 10.0


def make_tickets(*of: tuple[float, int]) -> list[Ticket]:
    return [Ticket(arrived_s, priority=priority) for arrived_s, priority in of]


def order(tickets: list[Ticket]) -> list[Ticket]:
    discipline = PriorityWithAging(aging_s=AGING_S)
    for ticket in tickets:
        discipline.push(ticket)
    popped = [each for _ in tickets if (each := discipline.pop(0.0)) is not None]
    assert len(discipline) == 0
    assert discipline.pop(0.0) is None
    return popped


def test_a_higher_priority_goes_first() -> None:
    low, middle, high = make_tickets((0.0, -1), (1.0, 0), (2.0, 1))
    assert order([low, middle, high]) == [high, middle, low]


def test_within_a_class_it_is_first_come_first_served() -> None:
    tickets = make_tickets(*[(float(at_s), 3) for at_s in range(50)])
    assert order(tickets[::-1]) == tickets
    same = make_tickets(*[(1.0, 3)] * 20)
    assert order(same) == same


def test_waiting_counts_as_priority() -> None:
    old, new = make_tickets((0.0, 0), (AGING_S + 0.1, 1))
    assert order([new, old]) == [old, new]
    old, new = make_tickets((0.0, 0), (AGING_S - 0.1, 1))
    assert order([old, new]) == [new, old]


@given(st.lists(st.tuples(st.floats(0.0, 1000.0), st.integers(-3, 3)), max_size=50))
def test_nobody_is_passed_by_who_comes_later_than_the_bound(of: list[tuple[float, int]]) -> None:
    popped = order(make_tickets(*sorted(of)))
    for place, ticket in enumerate(popped):
        for earlier in popped[:place]:
            bound_s = (earlier.priority - ticket.priority) * AGING_S
            assert earlier.arrived_s - ticket.arrived_s <= bound_s + 1e-6


def test_who_leaves_is_passed_over_and_places_are_told() -> None:
    discipline = PriorityWithAging(aging_s=AGING_S)
    first, gone, last = tickets = make_tickets((0.0, 0), (1.0, 0), (2.0, 0))
    for ticket in tickets:
        discipline.push(ticket)
    assert [discipline.ahead_of(ticket) for ticket in tickets] == [0, 1, 2]
    assert discipline.remove(gone)
    assert not discipline.remove(gone)
    assert [discipline.ahead_of(first), discipline.ahead_of(last)] == [0, 1]
    assert [discipline.pop(0.0), discipline.pop(0.0)] == [first, last]
