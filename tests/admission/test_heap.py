"""A heap of tickets from which any can be taken out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.admission.heap import _SLACK, TicketHeap
from aibrix_ray.admission.ticket import Ticket


def test_the_smallest_key_comes_first_and_of_equal_ones_the_first() -> None:
    heap = TicketHeap()
    late, first, second = Ticket(0.0), Ticket(0.0), Ticket(0.0)
    heap.push(2, late)
    heap.push(1, first)
    heap.push(1, second)
    assert heap.peek() == (1, first)
    assert [heap.pop(), heap.pop(), heap.pop(), heap.pop()] == [first, second, late, None]


def test_who_was_discarded_and_comes_again_stands_at_the_new_place() -> None:
    heap = TicketHeap()
    moved, other = Ticket(0.0), Ticket(0.0)
    heap.push(1, moved)
    heap.push(2, other)
    assert heap.discard(moved)
    assert not heap.discard(moved)
    heap.push(3, moved)
    assert heap.ahead_of(moved) == 1
    assert [heap.pop(), heap.pop(), heap.pop()] == [other, moved, None]


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "discard"]), st.integers(0, 5))))
def test_it_is_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    heap, expected = TicketHeap(), list[tuple[int, int, Ticket]]()
    for serial, (step, number) in enumerate(steps):
        if step == "push":
            ticket = Ticket(0.0)
            heap.push(number, ticket)
            expected.append((number, serial, ticket))
            expected.sort(key=lambda entry: entry[:2])
        elif step == "pop":
            assert heap.pop() is (expected.pop(0)[2] if expected else None)
        elif expected:
            assert heap.discard(expected.pop(number % len(expected))[2])
        assert len(heap) == len(expected)
        assert set(heap) == {entry[2] for entry in expected}
    for place, entry in enumerate(expected):
        assert heap.ahead_of(entry[2]) == place


def test_what_was_discarded_takes_no_room_for_long() -> None:
    heap = TicketHeap()
    tickets = [Ticket(0.0) for _ in range(100)]
    for ticket in tickets:
        heap.push(0, ticket)
    for _ in range(100):
        for ticket in tickets:
            heap.discard(ticket)
            heap.push(0, ticket)
            assert len(heap._heap) <= 2 * len(heap) + _SLACK + 1
