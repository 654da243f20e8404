"""What a gateway knows of keys: found in memory, followed in the store, bounded under a flood."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from aibrix_ray.errors import InvalidApiKey, StoreUnavailable
from aibrix_ray.tenants import (
    NewKey,
    NewTenant,
    Priority,
    Store,
    StoreCalls,
    TenantDirectory,
    TenantSettings,
    store_url,
)
from tests.tenants.clock import Clock
from tests.tenants.postgres import Postgres

MakeDirectory = Callable[..., TenantDirectory]


@pytest.fixture
async def make(store: Store, calls: StoreCalls, clock: Clock) -> AsyncIterator[MakeDirectory]:
    made: list[TenantDirectory] = []

    def new(*, of: Store = store, **options: Any) -> TenantDirectory:
        made.append(TenantDirectory(of, calls, clock=clock, **options))
        return made[-1]

    yield new
    for directory in made:
        await directory.close()


@pytest.fixture
async def directory(make: MakeDirectory, store: Store) -> TenantDirectory:
    store.tenants.create(NewTenant(name="acme"))
    return make()


class Questions:
    """Counts what is asked of the store, and can hold the answers back."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._find = store.keys.find
        self.sizes: list[int] = []
        self.under_way = self.most_under_way = 0
        self.answers = threading.Event()
        self.answers.set()
        self.broken = False
        monkeypatch.setattr(store.keys, "find", self._call)
        self._latest_change = store.keys.latest_change
        monkeypatch.setattr(store.keys, "latest_change", self._latest)

    def _call(self, digests: Iterable[bytes]) -> Any:
        digests = list(digests)
        self.sizes.append(len(digests))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.answers.wait(30)
        self.under_way -= 1
        if self.broken:
            raise StoreUnavailable("broken")
        return self._find(digests)

    def _latest(self) -> int:
        if self.broken:
            raise StoreUnavailable("broken")
        return self._latest_change()


@pytest.fixture
def questions(store: Store, monkeypatch: pytest.MonkeyPatch) -> Questions:
    store.check()
    return Questions(store, monkeypatch)


def new_key(store: Store, **fields: Any) -> bytes:
    return store.keys.create(NewKey(**{"tenant": "acme", **fields})).key.encode()


def wrong_key() -> bytes:
    return b"sk-" + secrets.token_urlsafe(32).encode()


def id_of(store: Store, key: bytes) -> str:
    return next(each.id for each in store.keys.list() if key.decode().startswith(each.prefix))


# Finding


async def test_a_key_is_looked_up_once_and_found_from_then_on(
    directory: TenantDirectory, store: Store, questions: Questions
) -> None:
    key = new_key(store)
    assert directory.find(key) is None
    tenant = await directory.lookup(key)
    assert directory.find(key) is tenant
    assert await directory.lookup(key) is tenant
    assert questions.sizes == [1]


async def test_a_tenant_carries_what_the_store_says(make: MakeDirectory, store: Store) -> None:
    store.tenants.create(
        NewTenant(
            name="acme",
            allowed_models=("m",),
            requests_per_minute=5,
            max_concurrent=3,
            priority="high",
            slo_tier="gold",
            weight=2.0,
        )
    )
    directory = make()
    key = new_key(store, role="admin")
    tenant = await directory.lookup(key)
    assert (tenant.name, tenant.key_id, tenant.is_admin) == ("acme", id_of(store, key), True)
    assert tenant.limits.requests_per_minute == 5
    assert (tenant.limits.tokens_per_minute, tenant.limits.max_concurrent) == (None, 3)
    assert (tenant.priority, tenant.slo_tier, tenant.weight) == (Priority.HIGH, "gold", 2.0)
    assert tenant.may_use("m")
    assert not tenant.may_use("other")
    again = await directory.lookup(new_key(store))
    assert again.limits is tenant.limits
    assert not again.is_admin


@pytest.mark.parametrize(
    "key",
    [None, b"", b"sk-", b"none", b"sk-" + b"x" * 42, b"sk-" + b"x" * 44, b"\xff" * 46,
     b"sk-" + b"\n" * 43, b"sk-" + b"x" * 43 + b"\n", b"x" * 1_000_000],
)  # fmt: skip
async def test_what_cannot_be_a_key_is_refused_without_asking_the_store(
    directory: TenantDirectory, questions: Questions, key: bytes | None
) -> None:
    with pytest.raises(InvalidApiKey):
        await directory.lookup(key)
    assert questions.sizes == []


async def test_the_key_of_a_request_is_that_of_its_headers(
    directory: TenantDirectory, store: Store
) -> None:
    key = new_key(store)
    tenant = await directory.authenticate([(b"authorization", b"Bearer " + key)])
    assert tenant.name == "acme"
    with pytest.raises(InvalidApiKey, match="didn't provide"):
        await directory.authenticate([(b"x-tenant", b"acme"), (b"user", b"acme")])


# Following


async def test_a_revoked_key_ends_with_the_next_refresh(
    directory: TenantDirectory, store: Store
) -> None:
    key, other = new_key(store), new_key(store)
    await directory.lookup(key)
    await directory.lookup(other)
    store.keys.revoke(id_of(store, key))
    await directory.refresh()
    assert directory.find(key) is None
    assert directory.find(other) is not None
    with pytest.raises(InvalidApiKey):
        await directory.lookup(key)


async def test_a_revocation_reaches_every_gateway_by_itself(
    make: MakeDirectory, store: Store, url: str
) -> None:
    store.tenants.create(NewTenant(name="acme"))
    key = new_key(store)
    elsewhere = Store(store_url(url, environ={}))  # another process's
    gateways = [make(poll_s=0.02), make(of=elsewhere, poll_s=0.02)]
    for gateway in gateways:
        await gateway.lookup(key)
        gateway.start()
    elsewhere.keys.revoke(id_of(store, key))
    async with asyncio.timeout(20):
        while any(gateway.find(key) is not None for gateway in gateways):
            await asyncio.sleep(0.005)
    for gateway in gateways:
        await gateway.close()
    elsewhere.close()


async def test_other_limits_reach_all_keys_of_the_tenant(
    directory: TenantDirectory, store: Store
) -> None:
    keys = [new_key(store) for _ in range(3)]
    for key in keys:
        await directory.lookup(key)
    store.tenants.change("acme", TenantSettings(requests_per_minute=7, allowed_models=("m",)))
    await directory.refresh()
    found = [directory.find(key) for key in keys]
    assert all(tenant and tenant.limits.requests_per_minute == 7 for tenant in found)
    assert not any(tenant and tenant.may_use("x") for tenant in found)


async def test_nothing_is_read_again_while_nothing_changes(
    directory: TenantDirectory, store: Store, questions: Questions
) -> None:
    await directory.lookup(new_key(store))
    await directory.refresh()
    asked = len(questions.sizes)
    for _ in range(3):
        await directory.refresh()
    assert len(questions.sizes) == asked


async def test_a_revocation_between_an_answer_and_its_arrival_is_not_missed(
    directory: TenantDirectory, store: Store, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup read the key before it was revoked, and is kept after the refresh that saw it."""
    key = new_key(store)
    await directory.refresh()
    call, slow, answered = store.keys.find, threading.Event(), threading.Event()

    def late(digests: Iterable[bytes]) -> Any:
        answer = call(digests)
        answered.set()
        slow.wait(30)
        return answer

    monkeypatch.setattr(store.keys, "find", late)
    lookup = asyncio.create_task(directory.lookup(key))
    await asyncio.to_thread(answered.wait, 30)
    store.keys.revoke(id_of(store, key))
    monkeypatch.setattr(store.keys, "find", call)
    await directory.refresh()
    slow.set()
    await lookup  # it was right when it was read
    await directory.refresh()
    assert directory.find(key) is None


async def test_an_expiry_needs_no_refresh(
    directory: TenantDirectory, store: Store, clock: Clock, questions: Questions
) -> None:
    key = new_key(store, expires_in_s=60)
    await directory.lookup(key)
    clock.turn(59)
    assert directory.find(key) is not None
    clock.turn(1)
    assert directory.find(key) is None
    with pytest.raises(InvalidApiKey):
        await directory.lookup(key)
    assert questions.sizes == [1]


async def test_a_rotated_key_works_until_its_grace_is_over(
    directory: TenantDirectory, store: Store, clock: Clock
) -> None:
    old = new_key(store)
    await directory.lookup(old)
    new = store.keys.rotate(id_of(store, old), grace_s=60).key.encode()
    await directory.refresh()
    assert directory.find(old) is not None
    assert await directory.lookup(new)
    clock.turn(60)
    assert directory.find(old) is None
    assert directory.find(new) is not None


# A flood of wrong keys


async def test_a_wrong_key_is_asked_for_once_in_a_while(
    directory: TenantDirectory, questions: Questions, clock: Clock
) -> None:
    key = wrong_key()
    for _ in range(3):
        with pytest.raises(InvalidApiKey):
            await directory.lookup(key)
    assert questions.sizes == [1]
    clock.turn(6)
    with pytest.raises(InvalidApiKey):
        await directory.lookup(key)
    assert questions.sizes == [1, 1]


async def test_a_key_that_was_just_made_is_not_held_for_wrong_after_a_refresh(
    directory: TenantDirectory, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = wrong_key()
    with pytest.raises(InvalidApiKey):
        await directory.lookup(coming)
    monkeypatch.setattr("aibrix_ray.tenants.key_rows.new_key", coming.decode)
    new_key(store)
    await directory.refresh()
    assert (await directory.lookup(coming)).name == "acme"


async def test_a_flood_of_wrong_keys_costs_few_questions_one_at_a_time(
    directory: TenantDirectory, store: Store, questions: Questions
) -> None:
    right = new_key(store)
    keys = [wrong_key() for _ in range(2000)]
    answers = await asyncio.gather(
        *(directory.lookup(key) for key in (*keys, right)), return_exceptions=True
    )
    assert all(isinstance(answer, InvalidApiKey) for answer in answers[:-1])
    assert not isinstance(answers[-1], BaseException)
    assert questions.most_under_way == 1
    assert len(questions.sizes) <= 6
    assert sum(questions.sizes) == 2001


async def test_one_question_is_asked_for_many_requests_with_the_same_new_key(
    directory: TenantDirectory, store: Store, questions: Questions
) -> None:
    key = new_key(store)
    questions.answers.clear()
    lookups = [asyncio.create_task(directory.lookup(key)) for _ in range(50)]
    await asyncio.sleep(0)
    lookups[0].cancel()  # one that leaves takes nothing from the others
    questions.answers.set()
    answers = await asyncio.gather(*lookups, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {getattr(answer, "name", answer) for answer in answers[1:]} == {"acme"}
    assert questions.sizes == [1]


async def test_memory_for_keys_is_bounded(
    make: MakeDirectory, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aibrix_ray.tenants.directory._MOST_UNKNOWN", 100)
    monkeypatch.setattr("aibrix_ray.tenants.directory._MOST_WAITING", 50)
    store.tenants.create(NewTenant(name="acme"))
    directory = make(max_keys=3)
    for key in [new_key(store) for _ in range(5)]:
        await directory.lookup(key)
    assert len(directory._known) == 3
    refused = 0
    for _ in range(5):
        flood = [directory.lookup(wrong_key()) for _ in range(80)]
        answers = await asyncio.gather(*flood, return_exceptions=True)
        refused += sum(isinstance(answer, StoreUnavailable) for answer in answers)
    assert refused == 5 * 30
    assert len(directory._unknown) == 100
    assert not directory._waiting
    assert not directory._queue


# The store goes away


async def test_while_the_store_is_away_known_keys_work_and_others_are_told(
    directory: TenantDirectory, store: Store, questions: Questions, clock: Clock
) -> None:
    known, unknown = new_key(store), new_key(store)
    ending = new_key(store, expires_in_s=60)
    for key in (known, ending):
        await directory.lookup(key)
    questions.broken = True
    with pytest.raises(StoreUnavailable):
        await directory.refresh()
    clock.turn(61)
    assert (await directory.lookup(known)).name == "acme"
    with pytest.raises(StoreUnavailable) as caught:
        await directory.lookup(unknown)
    assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
    with pytest.raises(InvalidApiKey):
        await directory.lookup(ending)
    questions.broken = False
    assert (await directory.lookup(unknown)).name == "acme"


async def test_what_changed_while_the_store_was_away_is_taken_over(
    directory: TenantDirectory, store: Store, questions: Questions
) -> None:
    key = new_key(store)
    await directory.lookup(key)
    await directory.refresh()
    store.keys.revoke(id_of(store, key))
    questions.broken = True
    with pytest.raises(StoreUnavailable):
        await directory.refresh()
    assert directory.find(key) is not None
    questions.broken = False
    await directory.refresh()
    assert directory.find(key) is None


async def test_a_refresh_that_breaks_half_way_is_done_again(
    directory: TenantDirectory, store: Store, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(store)
    await directory.lookup(key)
    store.keys.revoke(id_of(store, key))

    def broken(digests: Iterable[bytes]) -> Any:
        raise StoreUnavailable("after the change was read")

    with monkeypatch.context() as patch:
        patch.setattr(store.keys, "find", broken)
        with pytest.raises(StoreUnavailable):
            await directory.refresh()
    await directory.refresh()
    assert directory.find(key) is None


async def test_following_goes_on_after_the_server_was_away(
    postgres: Postgres, make: MakeDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(store_url(postgres.make_database(), environ={}))
    store.tenants.create(NewTenant(name="acme"))
    key = new_key(store)
    directory = make(of=store, poll_s=0.02)
    await directory.lookup(key)
    directory.start()
    await asyncio.to_thread(postgres.stop)
    try:
        async with asyncio.timeout(20):
            while "cannot be reached" not in caplog.text:
                await asyncio.sleep(0.01)
        assert directory.find(key) is not None
        with pytest.raises(StoreUnavailable):
            await directory.lookup(wrong_key())
    finally:
        await asyncio.to_thread(postgres.start)
    await asyncio.to_thread(store.keys.revoke, id_of(store, key))
    async with asyncio.timeout(20):
        while directory.find(key) is not None:
            await asyncio.sleep(0.01)
    await directory.close()
    assert caplog.text.count("cannot be reached") == 1
    store.close()


async def test_who_waits_when_the_gateway_stops_is_told(
    directory: TenantDirectory, store: Store, questions: Questions
) -> None:
    questions.answers.clear()
    lookup = asyncio.create_task(directory.lookup(new_key(store)))
    while not questions.sizes:
        await asyncio.sleep(0.001)
    await directory.close()
    with pytest.raises(StoreUnavailable):
        await lookup
    questions.answers.set()
