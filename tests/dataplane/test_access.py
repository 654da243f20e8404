"""Keys, limits and usage on the forwarded endpoints: who is let in, and what it is charged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aibrix_ray.config import GatewayUserConfig
from aibrix_ray.deployments.calls import InProcessCall
from aibrix_ray.errors import StoreUnavailable
from aibrix_ray.tenants import NewKey, NewTenant, Store, TenantSettings, UsageQuery, store_url
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.waiting import eventually

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [], "max_tokens": 10}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.delenv("AIBRIX_RAY_STORE", raising=False)
    made = Store(store_url(f"sqlite:///{tmp_path}/t.db", environ={}))
    made.tenants.create(NewTenant(name="acme", allowed_models=("m",)))
    yield made
    made.close()


@pytest.fixture
def key(store: Store) -> str:
    return store.keys.create(NewKey(tenant="acme")).key


@pytest.fixture
def args(store: Store, tmp_path: Path) -> dict[str, Any]:
    return {"auth": {"keys": True, "store": f"sqlite:///{tmp_path}/t.db"}}


async def ask(
    running: Gateway, key: str | None, *, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    told = {"authorization": f"Bearer {key}"} if key is not None else {}
    return await running.http.post(CHAT, json=BODY | fields, headers=told | (headers or {}))


async def metered(call: Call) -> None:
    """Answer with the usage on the private channel: 7 prompt tokens, 5 of the answer."""
    if call.json().get("stream"):
        await call.begin(SSE)
        await call.write(b'data: {}\n\n: aibrix {"usage":[7,3,5]}\n\n' + DONE)
        await call.end()
    else:
        await call.answer(headers=[(b"x-aibrix-meta", b'{"usage":[7,3,5]}')])


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer ak-unknown"},
        {"authorization": "Basic YWNtZTphY21l"},
        {"x-api-key": "nonsense"},
        {"user": "acme"},
    ],
)
async def test_without_a_key_that_works_nothing_reaches_a_replica(
    headers: dict[str, str], args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend(metered)
    running = await gateway([replica], args=args)
    answer = await ask(running, None, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert replica.calls == []


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_a_key_lets_in_and_stays_at_the_gateway(
    name: str, key: str, args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend(metered)
    running = await gateway([replica], args=args)
    value = f"Bearer {key}" if name == "authorization" else key
    answer = await ask(running, None, headers={name: value})
    assert answer.status_code == 200
    call = await replica.call()
    assert not any(key.encode() in value for _, value in call.headers)


async def test_a_tenant_has_its_models_only(
    store: Store, key: str, args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    replicas = {"m": [await backend(metered)], "other": [await backend(metered)]}
    running = await gateway(replicas, args=args, aliases=("alias",), models={"other": {}})
    told = {"authorization": f"Bearer {key}"}
    assert (await ask(running, key, model="alias")).status_code == 200
    refused = await ask(running, key, model="other")
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "model_not_allowed"
    listed = (await running.http.get("/v1/models", headers=told)).json()["data"]
    assert {card["id"] for card in listed} == {"m", "alias"}
    assert (await running.http.get("/v1/models/other", headers=told)).status_code == 403
    assert (await running.http.get("/v1/models")).status_code == 401


async def test_health_is_told_to_everybody(args: dict[str, Any], gateway: MakeGateway) -> None:
    running = await gateway(args=args)
    for path in ("/healthz", "/readyz", "/-/healthz", "/metrics"):
        assert (await running.http.get(path)).status_code == 200


async def test_the_admin_api_is_there_and_in_the_document(
    store: Store, key: str, args: dict[str, Any], gateway: MakeGateway
) -> None:
    running = await gateway(args=args)
    admin = store.keys.create(NewKey(tenant="acme", role="admin")).key
    for who, status in ((key, 403), (admin, 200)):
        told = {"authorization": f"Bearer {who}"}
        answer = await running.http.get("/admin/v1/keys", headers=told)
        assert answer.status_code == status
    paths = (await running.http.get("/openapi.json")).json()["paths"]
    served = {
        route.path
        for route in running.app._owned.routes  # type: ignore[attr-defined]
        if route.path.startswith("/admin/")
    }
    assert {path for path in paths if path.startswith("/admin/")} == served


async def test_a_revoked_key_is_out_and_a_store_that_is_away_hinders_no_known_key(
    store: Store, key: str, args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    running = await gateway([await backend(metered)], args=args)
    tenancy = running.app.access.tenancy
    assert tenancy is not None
    assert (await ask(running, key)).status_code == 200
    unseen = store.keys.create(NewKey(tenant="acme")).key

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("switched off by the test")

    with monkeypatch.context() as patched:
        patched.setattr(tenancy.store.keys, "find", away)
        assert (await ask(running, key)).status_code == 200
        refused = await ask(running, unseen)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert (await ask(running, unseen)).status_code == 200
    for each in store.keys.list(tenant="acme", limit=10):
        store.keys.revoke(each.id)
    await tenancy.directory.refresh()
    assert (await ask(running, key)).status_code == 401


async def test_python_handles_need_no_key(
    args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(metered)], args=args)
    running.begun += 1
    assert await InProcessCall(running.app, CHAT, BODY).answer() == {}


# Usage


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_is_stored_by_tenant_and_exported(
    stream: bool, store: Store, key: str, args: dict[str, Any],
    backend: MakeBackend, gateway: MakeGateway,
) -> None:  # fmt: skip
    running = await gateway([await backend(metered)], args=args)
    for _ in range(3):
        assert (await ask(running, key, stream=stream)).status_code == 200
    assert running.app.access.tenancy is not None
    await running.until_ended_count(3)
    await running.app.access.tenancy.recorder.flush()
    [row] = await asyncio.to_thread(
        store.usage.report, UsageQuery(group_by=("tenant", "model"), limit=10)
    )
    assert row == row | {"tenant": "acme", "model": "m", "requests": 3}
    assert (row["prompt_tokens"], row["completion_tokens"]) == (21, 15)
    samples = await running.samples()
    assert samples["aibrix_ray_tenant_requests_total", (("tenant", "acme"),)] == 3


async def test_a_cut_stream_is_charged_for_what_it_produced(
    store: Store, key: str, args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def cut(call: Call) -> None:
        await call.begin(SSE)
        await call.write(b":=7,0\n:+1,2,3\ndata: {}\n\n")
        death = asyncio.create_task(replica.kill())
        await call.until_disconnect()
        await death

    store.tenants.change("acme", TenantSettings(tokens_per_minute=1000))
    replica = await backend(cut)
    running = await gateway([replica], args=args, resume=True, wait_for_replica_s=0.0)
    answer = await ask(running, key, stream=True)
    assert b'"error"' in answer.content
    await running.until_ended_count(1)
    assert running.app.access.tenancy is not None
    await running.app.access.tenancy.recorder.flush()
    [row] = await asyncio.to_thread(store.usage.report, UsageQuery(group_by=(), limit=10))
    assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 3)


# Limits


async def test_a_tenants_requests_a_minute(
    store: Store, key: str, args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    store.tenants.change("acme", TenantSettings(requests_per_minute=5))
    running = await gateway([await backend(metered)], args=args)
    answers = await asyncio.gather(*(ask(running, key) for _ in range(12)))
    admitted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(admitted), len(refused)) == (5, 7)
    assert admitted[0].headers["x-ratelimit-limit-requests"] == "5"
    assert "x-ratelimit-remaining-requests" in admitted[0].headers
    assert int(refused[0].headers["retry-after"]) >= 1
    error = refused[0].json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
    labels = (("kind", "requests"), ("tenant", "acme"))
    assert (await running.samples())["aibrix_ray_limited_requests_total", labels] == 7


async def test_one_tenants_limit_is_no_other_ones(
    store: Store, key: str, args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    store.tenants.create(NewTenant(name="other"))
    store.tenants.change("acme", TenantSettings(requests_per_minute=1))
    other = store.keys.create(NewKey(tenant="other")).key
    running = await gateway([await backend(metered)], args=args)
    assert [(await ask(running, k)).status_code for k in (key, key, other, other)] == [
        *(200, 429, 200, 200)
    ]


async def test_concurrency_is_never_above_the_cap(
    store: Store, key: str, args: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    let_go = asyncio.Event()
    inside, most = 0, 0

    async def slow(call: Call) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await let_go.wait()
        inside -= 1
        await metered(call)

    store.tenants.change("acme", TenantSettings(max_concurrent=2))
    running = await gateway([await backend(slow)], args=args)
    asked = [asyncio.create_task(ask(running, key)) for _ in range(6)]
    await eventually(
        lambda: inside == 2 and sum(task.done() for task in asked) == 4, lambda: f"{asked}"
    )
    let_go.set()
    statuses = sorted([(await task).status_code for task in asked])
    assert statuses == [200, 200, 429, 429, 429, 429]
    assert most == 2
    assert (await ask(running, key)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "fields"), [({"user": "bob"}, {}), ({}, {"user": "bob"})], ids=["header", "field"]
)
async def test_with_keys_off_users_are_who_they_say(
    headers: dict[str, str], fields: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(metered)])
    running.app.reconfigure(
        GatewayUserConfig(**json.loads('{"user_limits": {"requests_per_minute": 1}}'))
    )
    assert (await ask(running, None, headers=headers, **fields)).status_code == 200
    assert (await ask(running, None, headers=headers, **fields)).status_code == 429
    assert (await ask(running, None, user="eve")).status_code == 200


async def test_a_models_limit_counts_for_all_and_changes_in_place(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend(metered)], limits={"requests_per_minute": 2})
    statuses = [(await ask(running, None, user=f"u{i}")).status_code for i in range(3)]
    assert statuses == [200, 200, 429]
    running.app.reconfigure(GatewayUserConfig())
    assert (await ask(running, None)).status_code == 200
    assert "x-ratelimit-limit-requests" not in (await ask(running, None)).headers


async def test_a_request_that_no_replica_served_is_not_charged(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def fail(call: Call) -> None:
        await call.answer(status=500)

    running = await gateway([], limits={"requests_per_minute": 1}, wait_for_replica_s=0.0)
    assert [(await ask(running, None)).status_code for _ in range(3)] == [503, 503, 503]
    running.set_members([await backend(metered)])
    assert (await ask(running, None)).status_code == 200
    assert (await ask(running, None)).status_code == 429


async def tokens_each(call: Call) -> None:
    """Answer with 10 prompt tokens and 50 of the answer, plainly or in a stream."""
    told = b'{"usage":[10,0,50]}'
    if call.json().get("stream"):
        await call.begin(SSE)
        await call.write(b"data: {}\n\n: aibrix " + told + b"\n\n" + DONE)
        await call.end()
    else:
        await call.answer(headers=[(b"x-aibrix-meta", told)])


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": False},
    ],
)
async def test_streamed_tokens_are_charged_like_plain_ones(
    fields: dict[str, Any], backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U12: TPM 200 and answers of 60 tokens; the budget is spent after the fourth."""
    running = await gateway([await backend(tokens_each)], limits={"tokens_per_minute": 200})
    statuses = []
    for count in range(1, 6):
        statuses.append((await ask(running, None, **fields)).status_code)
        await running.until_ended_count(count)
    assert statuses[:3] == [200, 200, 200]
    assert statuses[4] == 429
    assert running.app.metrics.of("m").tokens[2] == 50 * statuses.count(200)


async def test_prompt_tokens_count(backend: MakeBackend, gateway: MakeGateway) -> None:
    """U13: TPM 500, prompts of 400 tokens with answers of one, three in a row."""

    async def long(call: Call) -> None:
        await call.answer(headers=[(b"x-aibrix-meta", b'{"usage":[400,0,1]}')])

    running = await gateway([await backend(long)], limits={"tokens_per_minute": 500})
    words = [{"role": "user", "content": "word " * 400}]
    answers = [await ask(running, None, messages=words, max_tokens=1) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    error = answers[1].json()["error"]
    assert error["type"] == "tokens"
    assert "tokens" in error["message"]
    assert 1 <= int(answers[1].headers["retry-after"]) <= 60


async def test_an_embedding_has_no_answer_to_reserve_for(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    """U13's neighbour: only the prompt counts, also before anything is known."""
    running = await gateway([await backend(metered)], limits={"tokens_per_minute": 60})
    body = {"model": "m", "input": "hi"}
    assert (await running.post(body, "/v1/embeddings")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"model": "m", "messages": 7}, 400),
        (b"{not json", 400),
        ({"model": "m", "slow": True}, 504),
    ],
)
async def test_no_failing_request_keeps_its_place(
    body: Any, status: int, store: Store, key: str, args: dict[str, Any],
    backend: MakeBackend, gateway: MakeGateway,
) -> None:  # fmt: skip
    """U15: at most one at once; a bad request, and then a good one at once."""

    async def picky(call: Call) -> None:
        asked = call.json()
        if asked.get("slow"):
            await call.until_disconnect()
        elif asked["messages"] == 7:
            await call.answer(b'{"error":{}}', status=400)
        else:
            await metered(call)

    store.tenants.change("acme", TenantSettings(max_concurrent=1))
    running = await gateway(
        [await backend(picky)], args=args, first_byte_timeout_s=0.2, max_attempts=1
    )
    told = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await running.http.post(CHAT, content=content, headers=told)
    assert answer.status_code == status
    assert (await ask(running, key)).status_code == 200
    assert running.in_flight == 0
