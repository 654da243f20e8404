"""Usage: written by several gateways, added up, reported; kept while the store is away."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import pytest

from aibrix_ray.errors import BadRequest, StoreUnavailable
from aibrix_ray.tenants import (
    NewKey,
    NewTenant,
    Store,
    StoreCalls,
    UsageQuery,
    UsageRecorder,
    parse_groups,
    parse_moment,
    to_csv,
)
from aibrix_ray.tenants.records import UsageCounts, UsageKey
from aibrix_ray.types import Usage
from tests.tenants.clock import START_S, Clock
from tests.tenants.tenants import make_tenant

HOUR = int(START_S) // 3600 * 3600
USED = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=7)


def row(key: UsageKey, *counts: int) -> dict[UsageKey, UsageCounts]:
    return {key: UsageCounts(*counts)}


def a_key(**fields: Any) -> UsageKey:
    made: dict[str, Any] = {"hour_s": HOUR, "tenant": "t", "key_id": "k", "model": "m"}
    return UsageKey(**{"adapter": "", **made, **fields})


def total(store: Store) -> Mapping[str, str | int]:
    (found,) = store.usage.report(UsageQuery(group_by=()))
    return found


# The table


def test_what_several_writers_add_adds_up(store: Store) -> None:
    store.usage.add("one", 1, row(a_key(), 1, 10, 4, 7))
    store.usage.add("two", 1, row(a_key(), 2, 20, 0, 3))
    store.usage.add("one", 2, row(a_key(), 1, 1, 1, 1) | row(a_key(model="other"), 1, 0, 0, 0))
    assert store.usage.report(UsageQuery(group_by=("tenant", "model"))) == [
        {
            "tenant": "t",
            "model": "m",
            "requests": 4,
            "prompt_tokens": 31,
            "cached_tokens": 5,
            "completion_tokens": 11,
        },
        {
            "tenant": "t",
            "model": "other",
            "requests": 1,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "completion_tokens": 0,
        },
    ]


def test_a_batch_that_is_sent_twice_counts_once(store: Store) -> None:
    for batch in (1, 1, 2, 2, 1):
        store.usage.add("one", batch, row(a_key(), 1, 0, 0, 0))
    store.usage.add("two", 1, row(a_key(), 1, 0, 0, 0))
    assert total(store)["requests"] == 3


def test_a_report_has_the_groups_and_the_time_that_were_asked_for(store: Store) -> None:
    counts: dict[UsageKey, UsageCounts] = {}
    for hours, tenant, adapter in ((0, "a", "x"), (1, "a", ""), (14, "b", ""), (30, "b", "")):
        counts |= row(a_key(hour_s=HOUR + hours * 3600, tenant=tenant, adapter=adapter), 1, 2, 0, 3)
    store.usage.add("one", 1, counts)

    def rows(**query: Any) -> list[tuple[object, ...]]:
        found = store.usage.report(UsageQuery(**query))
        return [tuple(each.values())[:-3] for each in found]

    assert rows(group_by=()) == [(4,)]
    assert rows(group_by=("tenant",)) == [("a", 2), ("b", 2)]
    assert rows(group_by=("tenant", "adapter")) == [("a", "", 1), ("a", "x", 1), ("b", "", 2)]
    assert rows(group_by=("day",)) == [("2026-11-25", 2), ("2026-11-26", 2)]
    assert rows(group_by=("hour",), tenant="a") == [
        ("2026-11-25T10:00:00Z", 1),
        ("2026-11-25T11:00:00Z", 1),
    ]
    assert rows(group_by=("key",), since_s=START_S) == [("k", 4)]  # its hour had begun
    assert rows(group_by=(), since_s=HOUR + 3600) == [(3,)]
    assert rows(group_by=(), until_s=HOUR + 3600) == [(1,)]
    assert rows(group_by=(), model="unknown") == [(0,)]
    assert rows(group_by=("tenant",), model="unknown") == []
    assert len(rows(group_by=("hour",), limit=3)) == 3


def test_usage_outlives_its_tenant_and_marks_keys_as_used(store: Store) -> None:
    store.tenants.create(NewTenant(name="acme"))
    key = store.keys.create(NewKey(tenant="acme")).record.id
    store.usage.add("one", 1, row(a_key(tenant="acme", key_id=key), 1, 0, 0, 0))
    assert store.keys.get(key).last_used_s == START_S
    store.tenants.delete("acme", force=True)
    assert total(store)["requests"] == 1


def test_writers_that_have_been_silent_for_a_month_are_forgotten(
    store: Store, clock: Clock
) -> None:
    store.usage.add("old", 1, {})
    clock.turn(31 * 86_400)
    store.usage.add("new", 1, {})
    store.usage.add("old", 1, row(a_key(), 1, 0, 0, 0))  # only a writer that is forgotten may
    assert total(store)["requests"] == 1


# The recorder


def make_recorder(store: Store, calls: StoreCalls, clock: Clock, **options: int) -> UsageRecorder:
    return UsageRecorder(store, calls, clock=clock, **options)


async def test_what_was_used_is_counted_by_key_model_adapter_and_hour(
    store: Store, calls: StoreCalls, clock: Clock
) -> None:
    recorder = make_recorder(store, calls, clock)
    one, two = make_tenant(key_id="k1"), make_tenant(key_id="k2")
    for tenant, adapter in ((one, None), (one, None), (two, None), (two, "lora")):
        recorder.add(tenant, "m", adapter, USED)
    recorder.add(one, "m", None, None)  # nothing was used
    clock.turn(3600)
    recorder.add(one, "m", None, USED)
    await recorder.flush()
    found = store.usage.report(UsageQuery(group_by=("hour", "key", "adapter")))
    assert [tuple(each.values()) for each in found] == [
        ("2026-11-25T10:00:00Z", "k1", "", 3, 20, 8, 14),
        ("2026-11-25T10:00:00Z", "k2", "", 1, 10, 4, 7),
        ("2026-11-25T10:00:00Z", "k2", "lora", 1, 10, 4, 7),
        ("2026-11-25T11:00:00Z", "k1", "", 1, 10, 4, 7),
    ]
    await recorder.flush()  # nothing is left to be added
    assert total(store)["requests"] == 6


async def test_what_is_left_is_written_when_the_gateway_stops(
    store: Store, calls: StoreCalls, clock: Clock
) -> None:
    recorder = make_recorder(store, calls, clock)
    recorder.start()
    recorder.add(make_tenant(), "m", None, USED)
    await recorder.close()
    assert total(store)["requests"] == 1


class Breaking:
    """Breaks calls of `usage.add`, before or after the store has taken the batch."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._add = store.usage.add
        self.how: str | None = None
        monkeypatch.setattr(store.usage, "add", self._call)

    def _call(self, *arguments: Any) -> None:
        if self.how != "before":
            self._add(*arguments)
        if self.how is not None:
            raise StoreUnavailable(self.how)


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_batch_in_doubt_is_sent_again_and_counted_once(
    store: Store,
    calls: StoreCalls,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    breaking = Breaking(store, monkeypatch)
    recorder = make_recorder(store, calls, clock)
    breaking.how = how
    for _ in range(3):
        recorder.add(make_tenant(), "m", None, USED)
        with pytest.raises(StoreUnavailable):
            await recorder.flush()
    breaking.how = None
    await recorder.flush()
    await recorder.flush()
    assert (total(store)["requests"], total(store)["prompt_tokens"]) == (3, 30)
    assert recorder.lost_requests == 0


async def test_while_the_store_is_away_what_is_kept_is_bounded_and_the_loss_is_counted(
    store: Store, calls: StoreCalls, clock: Clock
) -> None:
    recorder = make_recorder(store, calls, clock, max_rows=2)
    for number in range(5):
        for _ in range(2):
            recorder.add(make_tenant(key_id=f"k{number}"), "m", None, USED)
    assert recorder.lost_requests == 6
    await recorder.flush()
    assert total(store)["requests"] == 4


async def test_a_store_that_is_away_at_the_end_is_waited_for_no_longer(
    store: Store,
    calls: StoreCalls,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Breaking(store, monkeypatch).how = "before"
    recorder = make_recorder(store, calls, clock)
    recorder.add(make_tenant(), "m", None, USED)
    await recorder.close()
    assert "the usage of 1 requests is lost" in caplog.text


async def test_odd_names_do_not_keep_the_others_from_being_written(
    store: Store, calls: StoreCalls, clock: Clock
) -> None:
    recorder = make_recorder(store, calls, clock)
    for model in ("a\0b", "ab", "\U0001f600" * 1000, "\U0001f600" * 2000):
        recorder.add(make_tenant(), model, model, USED)
    await recorder.flush()
    found = store.usage.report(UsageQuery(group_by=("model",)))
    assert {each["model"]: each["requests"] for each in found} == {
        "ab": 2,
        "\U0001f600" * 256: 2,
    }


# The report


def test_csv_reads_back_and_has_a_header_without_rows(store: Store) -> None:
    store.usage.add("one", 1, row(a_key(model='a "b", c'), 1, 2, 0, 3))
    rows = store.usage.report(UsageQuery(group_by=("model",)))
    (read,) = csv.DictReader(io.StringIO(to_csv(rows, ("model",))))
    assert (read["model"], read["completion_tokens"]) == ('a "b", c', "3")
    header = "tenant,requests,prompt_tokens,cached_tokens,completion_tokens\r\n"
    assert to_csv([], ("tenant",)) == header


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-25", START_S - 10.5 * 3600),
        ("2026-11-25T10:30", START_S),
        ("2026-11-25T10:30Z", START_S),
        ("2026-11-25T11:30+01:00", START_S),
        ("7d", START_S - 7 * 86_400),
        ("12h", START_S - 12 * 3600),
    ],
)
def test_a_moment_is_a_time_or_so_long_ago(text: str, expected: float) -> None:
    assert parse_moment(text, START_S, param="since") == expected


@pytest.mark.parametrize("text", ["", "yesterday", "7", "7w", "2026-13-01", "-1d", "9" * 9 + "d"])
def test_other_moments_are_refused(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_moment(text, START_S, param="since")
    assert caught.value.param == "since"


def test_groups_are_names_each_once() -> None:
    assert parse_groups("tenant, model", param="group_by") == ("tenant", "model")
    assert parse_groups("", param="group_by") == ()
    for text in ("tenant,tenant", "user", "tenant,", "tenant;model"):
        with pytest.raises(BadRequest):
            parse_groups(text, param="group_by")
