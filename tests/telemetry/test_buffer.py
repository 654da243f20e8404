from __future__ import annotations

from aibrix_ray.telemetry.buffer import ReportBuffer
from aibrix_ray.telemetry.store import REPLICA_TTL_S


def test_the_newest_stats_of_a_replica_are_sent_once() -> None:
    buffer = ReportBuffer()
    buffer.put("a", b"1", 0.0)
    buffer.put("b", b"2", 0.0)
    buffer.put("a", b"3", 0.1)
    assert buffer.take() == ([b"3", b"2"], [])
    assert not buffer.has_unsent()
    assert buffer.take() == ([], [])


def test_groups_are_sent_once_each() -> None:
    buffer = ReportBuffer()
    for replica_id in ("a", "b"):
        buffer.put(replica_id, b"1", 0.0)
        buffer.put_group(replica_id, b"group")
    assert buffer.take()[1] == [b"group"]
    buffer.put("a", b"2", 0.0)
    assert buffer.take() == ([b"2"], [])


def test_what_is_given_back_is_sent_again_with_everything_known() -> None:
    buffer = ReportBuffer()
    buffer.put("a", b"1", 0.0)
    buffer.put_group("a", b"group")
    buffer.take()
    buffer.put("b", b"2", 0.0)
    buffer.take()
    buffer.give_back()
    assert buffer.has_unsent()
    assert buffer.take() == ([b"1", b"2"], [b"group"])


def test_a_silent_replica_is_forgotten_with_its_group() -> None:
    buffer = ReportBuffer()
    buffer.put("a", b"1", 0.0)
    buffer.put_group("a", b"group")
    buffer.forget_unheard(REPLICA_TTL_S + 1)
    buffer.give_back()
    assert (len(buffer), buffer.knows_group("a"), buffer.has_unsent()) == (0, False, False)
