"""Tenants and keys on both databases."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from aibrix_ray.errors import ConfigError, Conflict, NotFound, StoreUnavailable
from aibrix_ray.tenants import KeyState, NewKey, NewTenant, Store, TenantSettings, store_url
from tests.tenants.clock import START_S, Clock
from tests.tenants.postgres import Postgres


def open_store(url: str) -> Store:
    return Store(store_url(url, environ={}))


def raw(url: str) -> sa.Engine:
    return sa.create_engine(store_url(url, environ={}))


# Keys


def test_a_key_is_256_random_bits_and_only_its_hash_is_stored(store: Store, url: str) -> None:
    store.tenants.create(NewTenant(name="acme"))
    issued = [store.keys.create(NewKey(tenant="acme", name="ci")) for _ in range(20)]
    assert len({each.key for each in issued}) == 20
    assert all(re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", each.key) for each in issued)
    engine = raw(url)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM aibrix_keys")).mappings().all()
    engine.dispose()
    hashes = {bytes(row["sha256"]) for row in rows}
    assert hashes == {hashlib.sha256(each.key.encode()).digest() for each in issued}
    stored = " ".join(str(value) for row in rows for value in row.values())
    assert not any(each.key in stored or each.key[9:] in stored for each in issued)


def test_the_text_of_a_key_is_not_printed_by_accident(store: Store) -> None:
    store.tenants.create(NewTenant(name="acme"))
    issued = store.keys.create(NewKey(tenant="acme"))
    assert issued.key not in repr(issued)
    assert issued.record.prefix == issued.key[:8]


def test_a_key_is_found_by_its_hash_with_its_tenant(store: Store, clock: Clock) -> None:
    settings = NewTenant(
        name="acme",
        allowed_models=("a", "b"),
        requests_per_minute=10,
        tokens_per_minute=1000,
        max_concurrent=2,
        priority="high",
        slo_tier="gold",
        weight=2.5,
    )
    tenant = store.tenants.create(settings)
    issued = store.keys.create(NewKey(tenant="acme", role="admin", expires_in_s=60))
    digest = hashlib.sha256(issued.key.encode()).digest()
    _, found = store.keys.find([digest, b"x" * 32])
    assert found.keys() == {digest}
    assert found[digest].tenant == tenant
    assert tenant.allowed_models == ("a", "b")
    assert (tenant.requests_per_minute, tenant.weight, tenant.slo_tier) == (10, 2.5, "gold")
    assert (found[digest].key_id, found[digest].is_admin) == (issued.record.id, True)
    assert found[digest].expires_s == START_S + 60


def test_a_revoked_key_is_found_no_more_and_stays_in_the_list(store: Store, clock: Clock) -> None:
    store.tenants.create(NewTenant(name="acme"))
    issued = store.keys.create(NewKey(tenant="acme"))
    clock.turn(5)
    assert store.keys.revoke(issued.record.id).revoked_s == START_S + 5
    clock.turn(5)
    assert store.keys.revoke(issued.record.id).revoked_s == START_S + 5  # again: nothing changes
    assert store.keys.find([hashlib.sha256(issued.key.encode()).digest()])[1] == {}
    (listed,) = store.keys.list()
    assert listed.state(clock()) is KeyState.REVOKED


def test_a_rotated_key_lives_for_the_grace_and_its_successor_takes_over_everything_else(
    store: Store, clock: Clock
) -> None:
    store.tenants.create(NewTenant(name="acme"))
    old = store.keys.create(NewKey(tenant="acme", name="ci", role="admin", expires_in_s=1000))
    clock.turn(100)
    new = store.keys.rotate(old.record.id, grace_s=60)
    assert new.key != old.key
    assert (new.record.name, new.record.role, new.record.tenant) == ("ci", "admin", "acme")
    assert new.record.expires_s == START_S + 1100
    gone = store.keys.get(old.record.id)
    assert gone.expires_s == START_S + 160
    assert gone.state(START_S + 159) is KeyState.ACTIVE
    assert gone.state(START_S + 160) is KeyState.EXPIRED


def test_a_grace_never_lengthens_a_life(store: Store) -> None:
    store.tenants.create(NewTenant(name="acme"))
    old = store.keys.create(NewKey(tenant="acme", expires_in_s=10))
    store.keys.rotate(old.record.id, grace_s=60)
    assert store.keys.get(old.record.id).expires_s == START_S + 10


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_key_that_has_ended_is_not_rotated(store: Store, clock: Clock, end: str) -> None:
    store.tenants.create(NewTenant(name="acme"))
    old = store.keys.create(NewKey(tenant="acme", expires_in_s=10))
    if end == "revoked":
        store.keys.revoke(old.record.id)
    clock.turn(11)
    with pytest.raises(Conflict, match=end):
        store.keys.rotate(old.record.id, grace_s=0)
    assert len(store.keys.list()) == 1


def test_a_key_needs_a_tenant(store: Store) -> None:
    with pytest.raises(NotFound, match="nobody"):
        store.keys.create(NewKey(tenant="nobody"))
    for call in (store.keys.get, store.keys.revoke, lambda key: store.keys.rotate(key, grace_s=1)):
        with pytest.raises(NotFound, match="key_x"):
            call("key_x")


def test_keys_are_listed_page_by_page_the_oldest_first(store: Store, clock: Clock) -> None:
    for tenant in ("a", "b"):
        store.tenants.create(NewTenant(name=tenant))
    made = []
    for number in range(7):
        made.append(store.keys.create(NewKey(tenant="ab"[number % 2])).record.id)
        clock.turn(number % 3)  # some are of the same moment
    pages: list[str] = []
    while page := store.keys.list(after=pages[-1] if pages else None, limit=2):
        assert len(page) <= 2
        pages += [key.id for key in page]
    assert sorted(pages) == sorted(made)
    assert pages == [key.id for key in store.keys.list()]
    assert {key.tenant for key in store.keys.list(tenant="a")} == {"a"}
    with pytest.raises(NotFound):
        store.keys.list(tenant="c")


# Tenants


def test_a_name_is_taken_once(store: Store) -> None:
    store.tenants.create(NewTenant(name="acme"))
    with pytest.raises(Conflict, match="acme"):
        store.tenants.create(NewTenant(name="acme"))


def test_a_change_changes_what_is_given_and_null_takes_a_limit_away(store: Store) -> None:
    store.tenants.create(NewTenant(name="acme", requests_per_minute=5, allowed_models=("m",)))
    changed = store.tenants.change("acme", TenantSettings(requests_per_minute=None, weight=2.0))
    assert (changed.requests_per_minute, changed.weight) == (None, 2.0)
    assert changed.allowed_models == ("m",)
    assert store.tenants.change("acme", TenantSettings(allowed_models=None)).allowed_models is None
    assert store.tenants.change("acme", TenantSettings(allowed_models=())).allowed_models == ()
    with pytest.raises(NotFound):
        store.tenants.change("nobody", TenantSettings(weight=2.0))


def test_a_tenant_with_working_keys_is_deleted_only_by_force(store: Store, clock: Clock) -> None:
    store.tenants.create(NewTenant(name="acme"))
    issued = store.keys.create(NewKey(tenant="acme", expires_in_s=10))
    with pytest.raises(Conflict, match="1 keys that work"):
        store.tenants.delete("acme")
    store.tenants.delete("acme", force=True)
    assert (store.tenants.list(), store.keys.list()) == ([], [])
    store.tenants.create(NewTenant(name="acme"))
    issued = store.keys.create(NewKey(tenant="acme", expires_in_s=10))
    clock.turn(10)
    store.tenants.delete("acme")
    with pytest.raises(NotFound):
        store.keys.get(issued.record.id)


def test_every_change_is_counted_and_reading_is_not(store: Store) -> None:
    seen = [store.keys.latest_change()]

    def changed() -> bool:
        seen.append(store.keys.latest_change())
        return seen[-1] > seen[-2]

    store.tenants.create(NewTenant(name="acme"))
    assert changed()
    issued = store.keys.create(NewKey(tenant="acme"))
    assert changed()
    store.tenants.change("acme", TenantSettings(weight=3.0))
    assert changed()
    store.keys.touch([issued.record.id])
    store.keys.list()
    assert not changed()
    second = store.keys.rotate(issued.record.id, grace_s=5)
    assert changed()
    store.keys.revoke(second.record.id)
    assert changed()
    store.tenants.delete("acme", force=True)
    assert changed()


def test_the_last_use_only_grows(store: Store, clock: Clock) -> None:
    store.tenants.create(NewTenant(name="acme"))
    key = store.keys.create(NewKey(tenant="acme")).record.id
    assert store.keys.get(key).last_used_s is None
    store.keys.touch([key, key, "key_gone"])
    assert store.keys.get(key).last_used_s == START_S
    clock.turn(-10)
    store.keys.touch([key])
    assert store.keys.get(key).last_used_s == START_S


# Several at once


def test_processes_that_start_at_once_make_one_set_of_tables(url: str) -> None:
    code = (
        "import sys\n"
        "from aibrix_ray.tenants import NewTenant, Store, store_url\n"
        "sys.stdin.read(1)\n"
        "Store(store_url(sys.argv[1])).tenants.create(NewTenant(name=sys.argv[2]))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, f"t{number}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    store = open_store(url)
    assert [tenant.name for tenant in store.tenants.list()] == ["t0", "t1", "t2", "t3"]
    assert store.keys.latest_change() == 4
    store.close()


def test_writers_in_several_threads_and_stores_wait_for_each_other(url: str) -> None:
    stores = [open_store(url) for _ in range(2)]
    with ThreadPoolExecutor(8) as threads:
        names = [f"t{number}" for number in range(24)]
        list(
            threads.map(
                lambda name: stores[len(name) % 2].tenants.create(NewTenant(name=name)), names
            )
        )
    assert len(stores[0].tenants.list()) == 24
    assert stores[0].keys.latest_change() == 24
    for store in stores:
        store.close()


def test_tables_of_another_version_are_refused(url: str) -> None:
    store = open_store(url)
    store.check()
    store.close()
    engine = raw(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE aibrix_meta SET value = 99 WHERE name = 'schema'"))
    engine.dispose()
    store = open_store(url)
    with pytest.raises(ConfigError, match="version 99"):
        store.check()
    store.close()


# Where it is


def test_the_default_is_a_file_in_the_users_state_folder_that_nobody_else_reads(
    tmp_path: Path,
) -> None:
    url = store_url(environ={"XDG_STATE_HOME": str(tmp_path)})
    file = tmp_path / "aibrix_ray" / "tenants.db"
    assert url.database == str(file)
    old = os.umask(0)
    try:
        store = Store(url)
        store.tenants.create(NewTenant(name="acme"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
        store.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert "tenants.db-wal" in modes
    assert set(modes.values()) == {0o600}


def test_without_xdg_state_home_it_is_below_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    expected = "/home/me/.local/state/aibrix_ray/tenants.db"
    assert store_url(environ={}).database == expected
    assert store_url(environ={"XDG_STATE_HOME": "relative"}).database == expected


def test_a_flag_is_stronger_than_the_environment_and_that_than_the_file() -> None:
    environ = {"AIBRIX_RAY_STORE": "sqlite:////env.db"}
    assert store_url("sqlite:////file.db", environ={}).database == "/file.db"
    assert store_url("sqlite:////file.db", environ=environ).database == "/env.db"
    flag = store_url("sqlite:////file.db", flag="sqlite:////flag.db", environ=environ)
    assert flag.database == "/flag.db"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_means_our_driver(scheme: str) -> None:
    url = store_url(f"{scheme}://me:hush@host/db", environ={})
    assert url.drivername == "postgresql+psycopg"
    assert "hush" not in repr(Store(url))


@pytest.mark.parametrize(
    "text",
    ["mysql://me:hush@h/d", "hush", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true",
     "postgresql+psycopg2://me:hush@h/d", "postgresql://me:hush@h:port/d"],
)  # fmt: skip
def test_what_is_no_store_is_refused_without_telling_a_password(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        store_url(text, environ={})
    assert caught.value.path == "auth.store"
    assert "hush" not in str(caught.value)


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(f"sqlite:///{tmp_path}/file/tenants.db")
    with pytest.raises(ConfigError, match=r"tenants\.db"):
        store.check()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "tenants.db").write_text("hello" * 1000)
    store = open_store(f"sqlite:///{tmp_path}/tenants.db")
    with pytest.raises(StoreUnavailable) as caught:
        store.check()
    assert "not a database" in caught.value.reason
    store.close()


# When the database goes away


def test_a_server_that_is_away_is_said_and_one_that_is_back_is_used(postgres: Postgres) -> None:
    store = open_store(postgres.make_database())
    store.tenants.create(NewTenant(name="acme"))
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailable) as caught:
            store.tenants.list()
    finally:
        postgres.start()
    assert str(postgres.root) in caught.value.reason
    assert str(postgres.root) not in caught.value.message
    assert [tenant.name for tenant in store.tenants.list()] == ["acme"]
    store.close()


def test_a_store_may_be_made_while_its_server_is_away(postgres: Postgres) -> None:
    url = postgres.make_database()
    postgres.stop()
    try:
        store = open_store(url)
        with pytest.raises(StoreUnavailable):
            store.check()
    finally:
        postgres.start()
    store.check()
    store.close()
