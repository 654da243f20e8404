"""The admin API: who may use it, what it does, what it refuses."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from aibrix_ray.dataplane.admin import admin_routes
from aibrix_ray.errors import StoreUnavailable
from aibrix_ray.tenants import (
    NewKey,
    NewTenant,
    Store,
    StoreCalls,
    TenantDirectory,
    store_url,
)
from aibrix_ray.tenants.records import UsageCounts, UsageKey

NOW_S = 1_795_602_600.0  # 2026-11-25 10:30 UTC
KEYS, TENANTS, USAGE = "/admin/v1/keys", "/admin/v1/tenants", "/admin/v1/usage"


@dataclass
class Admin:
    """The API, and clients with keys of each kind."""

    store: Store
    directory: TenantDirectory
    app: Starlette
    http: httpx.AsyncClient  # with an admin key
    admin_key: str
    user_key: str

    async def keys(self, **query: Any) -> Any:
        return (await self.http.get(KEYS, params=query)).json()["data"]

    async def create(self, **body: Any) -> Any:
        answer = await self.http.post(KEYS, json={"tenant": "acme", **body})
        assert answer.status_code == 201, answer.text
        return answer.json()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(error["message"]) < 400
    return error


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(store_url(f"sqlite:///{tmp_path}/t.db", environ={}), clock=lambda: NOW_S)
    yield made
    made.close()


@pytest.fixture
async def admin(store: Store) -> AsyncIterator[Admin]:
    for name in ("acme", "ops"):
        store.tenants.create(NewTenant(name=name))
    admin_key = store.keys.create(NewKey(tenant="ops", role="admin")).key
    user_key = store.keys.create(NewKey(tenant="acme")).key
    calls = StoreCalls()
    directory = TenantDirectory(store, calls, clock=lambda: NOW_S)
    app = Starlette(routes=list(admin_routes(store, directory, calls, clock=lambda: NOW_S)))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://gateway",
        headers={"authorization": f"Bearer {admin_key}"},
    ) as http:
        yield Admin(store, directory, app, http, admin_key, user_key)
    await directory.close()
    calls.close()
    await asyncio.to_thread(calls._executor.shutdown)


# Who may use it


EVERYTHING = [
    ("GET", KEYS),
    ("POST", KEYS),
    ("GET", f"{KEYS}/key_0"),
    ("DELETE", f"{KEYS}/key_0"),
    ("POST", f"{KEYS}/key_0/rotate"),
    ("GET", TENANTS),
    ("POST", TENANTS),
    ("GET", f"{TENANTS}/acme"),
    ("PATCH", f"{TENANTS}/acme"),
    ("DELETE", f"{TENANTS}/acme"),
    ("GET", USAGE),
]


def test_the_list_of_this_test_is_complete(store: Store) -> None:
    routes = admin_routes(store, None, None)  # type: ignore[arg-type]
    paths = {
        (method, route.path.replace("{key}", "key_0").replace("{tenant}", "acme"))
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert paths == set(EVERYTHING)


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
@pytest.mark.parametrize("who", ["nobody", "stranger", "user", "user, twice"])
async def test_everything_needs_an_admin_key(
    admin: Admin, method: str, path: str, who: str
) -> None:
    headers = {
        "nobody": {"authorization": "", "user": "ops", "x-tenant": "ops"},
        "stranger": {"authorization": f"Bearer sk-{'x' * 43}"},
        "user": {"authorization": f"Bearer {admin.user_key}"},
        "user, twice": {"authorization": f"Bearer {admin.user_key}", "x-api-key": admin.admin_key},
    }[who]
    body = json.dumps({"tenant": "ops", "role": "admin"}).encode()
    answer = await admin.http.request(method, path, headers=headers, content=body)
    error = error_of(answer)
    if who.startswith("user"):
        assert (answer.status_code, error["code"]) == (403, "permission_denied")
    else:
        assert (answer.status_code, error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert len(admin.store.keys.list()) == 2
    assert len(admin.store.tenants.list()) == 2


async def test_x_api_key_is_as_good(admin: Admin) -> None:
    headers = {"authorization": "", "x-api-key": admin.admin_key}
    assert (await admin.http.get(KEYS, headers=headers)).status_code == 200


async def test_a_revoked_admin_key_is_refused_at_once(admin: Admin) -> None:
    mine = next(key["id"] for key in await admin.keys() if key["role"] == "admin")
    assert (await admin.http.delete(f"{KEYS}/{mine}")).status_code == 200
    assert (await admin.http.get(KEYS)).status_code == 401


async def test_while_the_store_is_away_the_answer_is_503(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.keys()

    def broken(*arguments: object, **named: object) -> None:
        raise StoreUnavailable("host db.internal is down")

    monkeypatch.setattr(admin.store.keys, "touch", broken)
    answer = await admin.http.get(KEYS)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "store_unavailable")
    assert answer.headers["retry-after"] == "2"
    assert "db.internal" not in answer.text


# Keys


async def test_a_key_is_shown_once_and_works_at_once(admin: Admin) -> None:
    made = await admin.create(name="ci", role="user", expires_in_s=60)
    key = made.pop("key")
    assert made == {
        "id": made["id"],
        "object": "api_key",
        "tenant": "acme",
        "name": "ci",
        "prefix": key[:8],
        "role": "user",
        "state": "active",
        "created": int(NOW_S),
        "expires": int(NOW_S) + 60,
        "revoked": None,
        "last_used": None,
    }
    assert (await admin.directory.lookup(key.encode())).key_id == made["id"]
    everything = (await admin.http.get(KEYS)).text + (await admin.http.get(TENANTS)).text
    assert key not in everything
    assert (await admin.http.get(f"{KEYS}/{made['id']}")).json() == made


async def test_an_answer_with_a_key_is_kept_by_no_cache(admin: Admin) -> None:
    answer = await admin.http.post(KEYS, json={"tenant": "acme"})
    assert answer.headers["cache-control"] == "no-store"


async def test_an_admin_key_made_here_is_one(admin: Admin) -> None:
    made = await admin.create(role="admin")
    headers = {"authorization": f"Bearer {made['key']}"}
    assert (await admin.http.get(KEYS, headers=headers)).status_code == 200


async def test_a_revoked_key_ends_here_at_once(admin: Admin) -> None:
    made = await admin.create()
    await admin.directory.lookup(made["key"].encode())
    answer = await admin.http.delete(f"{KEYS}/{made['id']}")
    assert answer.json() == {"id": made["id"], "object": "api_key.deleted", "deleted": True}
    assert admin.directory.find(made["key"].encode()) is None
    assert (await admin.http.get(f"{KEYS}/{made['id']}")).json()["state"] == "revoked"


async def test_a_rotated_key_has_a_successor_and_a_grace(admin: Admin) -> None:
    old = await admin.create(name="ci")
    new = (await admin.http.post(f"{KEYS}/{old['id']}/rotate", json={"grace_s": 60})).json()
    assert (new["name"], new["expires"]) == ("ci", None)
    assert new["key"] != old["key"]
    assert (await admin.http.get(f"{KEYS}/{old['id']}")).json()["expires"] == int(NOW_S) + 60
    answer = await admin.http.post(f"{KEYS}/{new['id']}/rotate")  # without a body: the default
    assert answer.status_code == 201
    await admin.http.delete(f"{KEYS}/{new['id']}")
    answer = await admin.http.post(f"{KEYS}/{new['id']}/rotate")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "conflict")


async def test_lists_come_in_pages(admin: Admin) -> None:
    for _ in range(3):
        await admin.create()
    found: list[str] = []
    more = True
    while more:
        query = {"limit": 2} | ({"after": found[-1]} if found else {})
        page = (await admin.http.get(KEYS, params=query)).json()
        assert len(page["data"]) <= 2
        found += [key["id"] for key in page["data"]]
        more = page["has_more"]
    assert len(found) == len(set(found)) == 5
    assert len(await admin.keys(tenant="acme")) == 4
    page = (await admin.http.get(TENANTS, params={"limit": 1})).json()
    assert ([tenant["name"] for tenant in page["data"]], page["has_more"]) == (["acme"], True)
    page = (await admin.http.get(TENANTS, params={"limit": 1, "after": "acme"})).json()
    assert ([tenant["name"] for tenant in page["data"]], page["has_more"]) == (["ops"], False)


# Tenants


async def test_a_tenant_is_made_changed_read_and_deleted(admin: Admin) -> None:
    body = {"name": "new", "allowed_models": ["m"], "requests_per_minute": 5, "priority": "low"}
    made = (await admin.http.post(TENANTS, json=body)).json()
    assert {name: made[name] for name in body} == body
    assert (made["tokens_per_minute"], made["weight"], made["object"]) == (None, 1.0, "tenant")
    path = f"{TENANTS}/new"
    changed = await admin.http.patch(path, json={"requests_per_minute": None, "slo_tier": "gold"})
    assert changed.json() == {**made, "requests_per_minute": None, "slo_tier": "gold"}
    assert (await admin.http.get(path)).json() == changed.json()
    assert (await admin.http.delete(path)).json()["deleted"]
    assert (await admin.http.get(path)).status_code == 404


async def test_a_tenant_with_keys_goes_only_by_force(admin: Admin) -> None:
    answer = await admin.http.delete(f"{TENANTS}/acme")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "conflict")
    assert (await admin.http.delete(f"{TENANTS}/acme?force=true")).status_code == 200


async def test_a_name_that_is_taken_is_a_conflict(admin: Admin) -> None:
    answer = await admin.http.post(TENANTS, json={"name": "acme"})
    assert (answer.status_code, error_of(answer)["param"]) == (409, "name")


# Usage


async def test_usage_is_json_or_csv(admin: Admin) -> None:
    hour_s = int(NOW_S) // 3600 * 3600
    counts = {
        UsageKey(hour_s, "acme", "k", "m", ""): UsageCounts(1, 10, 0, 5),
        UsageKey(hour_s - 7200, "acme", "k", "m", ""): UsageCounts(2, 20, 0, 6),
        UsageKey(hour_s, "ops", "k", "m", ""): UsageCounts(4, 0, 0, 0),
    }
    admin.store.usage.add("w", 1, counts)
    answer = (await admin.http.get(USAGE)).json()
    assert answer["group_by"] == ["tenant", "model", "adapter"]
    assert [(row["tenant"], row["requests"]) for row in answer["data"]] == [("acme", 3), ("ops", 4)]
    query = {"tenant": "acme", "model": "m", "since": "1h", "until": "2026-11-26", "group_by": ""}
    (row,) = (await admin.http.get(USAGE, params=query)).json()["data"]
    assert row == {
        "requests": 1,
        "prompt_tokens": 10,
        "cached_tokens": 0,
        "completion_tokens": 5,
    }
    by_format = await admin.http.get(USAGE, params={"format": "csv", "group_by": "tenant"})
    by_accept = await admin.http.get(
        USAGE, params={"group_by": "tenant"}, headers={"accept": "text/csv"}
    )
    assert by_format.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_format.text == by_accept.text
    read = list(csv.DictReader(io.StringIO(by_format.text)))
    assert [(row["tenant"], row["completion_tokens"]) for row in read] == [
        ("acme", "11"),
        ("ops", "0"),
    ]


async def test_too_many_rows_are_refused(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aibrix_ray.dataplane.admin._MAX_USAGE_ROWS", 1)
    counts = {UsageKey(0, f"t{number}", "k", "m", ""): UsageCounts(1) for number in range(2)}
    admin.store.usage.add("w", 1, counts)
    assert (await admin.http.get(USAGE)).status_code == 400
    assert (await admin.http.get(USAGE, params={"group_by": ""})).status_code == 200


# What is refused


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (KEYS, {}, "tenant"),
        (KEYS, {"tenant": "acme", "role": "root"}, "role"),
        (KEYS, {"tenant": "acme", "expires_in_s": -1}, "expires_in_s"),
        (KEYS, {"tenant": "acme", "expires_in_s": "60"}, "expires_in_s"),
        (KEYS, {"tenant": "acme", "key": "sk-mine"}, "key"),
        (KEYS, {"tenant": "a/b"}, "tenant"),
        (TENANTS, {"name": "a b"}, "name"),
        (TENANTS, {"name": "a", "allowed_models": [1]}, "allowed_models.0"),
        (TENANTS, {"name": "a", "weight": 0}, "weight"),
        (TENANTS, {"name": "a", "x" * 5000: 1}, "x" * 197 + "..."),
        (TENANTS, [], None),
        (TENANTS, "name", None),
    ],
)
async def test_a_body_that_is_wrong_is_400_and_names_the_field(
    admin: Admin, path: str, body: object, param: str | None
) -> None:
    answer = await admin.http.post(path, json=body)
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_request", param)


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b'{"name": "\\ud800"}', b"[" * 10_000, b'{"name": NaN}', b"\0"]
)
async def test_a_body_that_is_no_json_is_400(admin: Admin, content: bytes) -> None:
    assert (await admin.http.post(TENANTS, content=content)).status_code == 400


async def test_a_body_that_is_too_large_is_413(admin: Admin) -> None:
    answer = await admin.http.post(TENANTS, content=b" " * 65_537)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")


async def test_a_key_for_a_tenant_that_is_not_there_is_404(admin: Admin) -> None:
    answer = await admin.http.post(KEYS, json={"tenant": "nobody"})
    assert (answer.status_code, error_of(answer)["param"]) == (404, "tenant")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{KEYS}/key_00", 404),
        (f"{KEYS}/%00", 404),
        (f"{KEYS}/{'x' * 4000}", 404),
        (f"{KEYS}/%ff", 404),
        (f"{TENANTS}/nobody", 404),
        (f"{TENANTS}/a%20b", 404),
        (f"{KEYS}?limit=0", 400),
        (f"{KEYS}?limit=1001", 400),
        (f"{KEYS}?limit=%C2%B2", 400),
        (f"{KEYS}?after=key_00", 404),
        (f"{KEYS}?after=%00", 404),
        (f"{KEYS}?tenant=nobody", 404),
        (f"{KEYS}?tenants=acme", 400),
        (f"{USAGE}?since=yesterday", 400),
        (f"{USAGE}?group_by=user", 400),
        (f"{USAGE}?format=xml", 400),
        (f"{USAGE}?model=%00", 400),
        (f"{USAGE}?tenant=%00", 404),
    ],
)
async def test_what_is_asked_for_wrongly_is_told(admin: Admin, path: str, status: int) -> None:
    answer = await admin.http.get(path)
    assert answer.status_code == status
    error_of(answer)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    ["name", "tenant", "role", "weight", "allowed_models", "priority", "expires_in_s", "grace_s"]
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(EVERYTHING), st.dictionaries(_FIELDS, _JSON), st.text(max_size=20))
def test_no_body_and_no_query_makes_a_500(
    store: Store, route: tuple[str, str], body: dict[str, Any], text: str
) -> None:
    async def ask() -> int:
        calls = StoreCalls()
        directory = TenantDirectory(store, calls, clock=lambda: NOW_S)
        app = Starlette(routes=list(admin_routes(store, directory, calls)))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://g") as http:
            answer = await http.request(
                route[0],
                route[1],
                content=json.dumps(body).encode(),
                params={"tenant": text} if route[0] == "GET" else {},
                headers={"authorization": f"Bearer {key}"},
            )
        await directory.close()
        calls.close()
        await asyncio.to_thread(calls._executor.shutdown)
        return answer.status_code

    for name in ("acme", "ops"):
        if name not in [tenant.name for tenant in store.tenants.list()]:
            store.tenants.create(NewTenant(name=name))
    key = store.keys.create(NewKey(tenant="ops", role="admin")).key
    assert asyncio.run(ask()) < 500
