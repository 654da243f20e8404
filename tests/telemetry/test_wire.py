from __future__ import annotations

import msgspec
import pytest

from aibrix_ray.telemetry import LoadWindow, Update, Version, wire
from tests.telemetry.figures import make_fleet, make_group, make_stats


def test_a_batch_comes_back_as_it_was() -> None:
    fleet = [*make_fleet(3), make_stats(draining=True)]
    payload = wire.encode_batch(wire.encode_stats(s) for s in fleet)
    assert wire.decode_batch(payload) == (fleet, 0)


def test_groups_come_back_as_they_were() -> None:
    group = make_group(labels={"a": "b"}, cost_per_hour=1.5)
    assert wire.decode_groups(wire.encode_batch([wire.encode_group(group)])) == [group]


def test_an_update_and_windows_come_back_as_they_were() -> None:
    update = Update(
        Version("i", 3), False, tuple(make_fleet(2)), (0.1, 0.2), ("r9",), (make_group(),)
    )
    assert wire.decode_update(wire.encode_update(update)) == update
    window = LoadWindow(name="g", group="g", model="m", window_s=30.0, requests_per_s=1.0)
    assert wire.decode_windows(wire.encode_windows([window])) == [window]


def test_another_version_of_the_package_is_understood() -> None:
    known = {"replica_id": "r", "group": "g", "model": "m", "epoch": "e", "sequence": 1}
    newer = msgspec.msgpack.encode(known | {"running": 1, "waiting": 2, "invented_later": [1]})
    ((stats,), unreadable) = wire.decode_batch(wire.encode_batch([newer]))
    assert (stats.running, stats.kv_usage, unreadable) == (1, None, 0)


def test_one_unreadable_report_does_not_spoil_the_batch() -> None:
    bad = msgspec.msgpack.encode({"replica_id": 7})
    payload = wire.encode_batch([bad, wire.encode_stats(make_stats())])
    assert wire.decode_batch(payload) == ([make_stats()], 1)


def test_a_payload_that_is_no_batch_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        wire.decode_batch(b"\x01")
