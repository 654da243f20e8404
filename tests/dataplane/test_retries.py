"""Before the first byte a replica that fails costs an attempt; nothing else."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from aibrix_ray.types import Ending, ReplicaStats
from tests.dataplane.backends import (
    SSE,
    Call,
    MakeBackend,
    MakeRawBackend,
    Peer,
    Script,
    echo,
    event,
    hang,
)
from tests.dataplane.forms import CONTENT_TYPE, TRANSCRIBE, field, form
from tests.dataplane.gateways import Gateway, MakeGateway
from tests.dataplane.policies import First, Queueing
from tests.dataplane.waiting import Clock, eventually, within

FIRST = {"policy": "tests.dataplane.policies:First"}


def first_policy(gateway: Gateway) -> First:
    return cast(First, gateway.app.pipeline.models["m"].policy)


def stats(gateway: Gateway, index: int = 0, **fields: Any) -> ReplicaStats:
    replica = gateway.replica(index)
    fixed = {"model": "m", "epoch": "", "sequence": 1, "running": 0, "waiting": 0}
    return ReplicaStats(replica.replica_id, "m", **{**fixed, **fields})


# Refused connections


async def test_a_replica_that_refuses_costs_one_attempt_and_is_not_asked_again(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    dead, alive = await backend(), await backend()
    running = await gateway([dead, alive], routing=FIRST)
    await dead.kill()
    for _ in range(3):
        assert (await running.post()).status_code == 200
    assert len(alive.calls) == 3
    assert running.retries == 1
    assert running.ready == ["m-1"]


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_a_replica_that_refused_is_asked_again_once_membership_confirms_it(
    backend: MakeBackend, gateway: MakeGateway, tcp: bool
) -> None:
    flaky, other = await backend(tcp=tcp), await backend()
    running = await gateway([flaky, other], routing=FIRST)
    await flaky.kill()
    await running.post()
    await flaky.start()
    await running.post()
    assert (running.ready, len(flaky.calls)) == (["m-1"], 0)
    running.set_members([flaky, other])
    await running.post()
    assert (running.ready, len(flaky.calls)) == (["m-0", "m-1"], 1)


async def test_a_replica_that_refused_is_asked_again_once_it_reports(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    flaky, other = await backend(), await backend()
    running = await gateway([flaky, other], routing=FIRST)
    await flaky.kill()
    await running.post()
    assert running.ready == ["m-1"]
    await flaky.start()
    running.app.fleet.apply_stats([stats(running)], 0.0)
    assert running.ready == ["m-0", "m-1"]
    await running.post()
    assert len(flaky.calls) == 1


# Resets before the first byte


async def close_at_once(peer: Peer) -> None:
    await peer.request()
    peer.close()


async def reset_at_once(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def reset_unread(peer: Peer) -> None:
    peer.reset()


async def die_amid_the_head(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"HTTP/1.1 200 OK\r\ncontent-")
    peer.close()


async def die_amid_a_plain_answer(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + bytes(99_999))
    peer.close()


async def die_amid_a_chunked_answer(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    await peer.chunk(b'{"choices": ')
    peer.close()


async def die_before_the_first_event(peer: Peer) -> None:
    await peer.request()
    await peer.begin_stream()
    peer.close()


async def answer_with_garbage(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"\x00\x01\x02\x03" * 10)
    await peer.until_closed()


DEATHS: list[Script] = [
    close_at_once,
    reset_at_once,
    reset_unread,
    die_amid_the_head,
    die_amid_a_plain_answer,
    die_amid_a_chunked_answer,
    die_before_the_first_event,
    answer_with_garbage,
]


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("death", DEATHS, ids=[d.__name__ for d in DEATHS])
async def test_before_the_first_byte_a_death_costs_one_attempt_and_the_client_sees_nothing(
    raw_backend: MakeRawBackend,
    backend: MakeBackend,
    gateway: MakeGateway,
    death: Script,
    tcp: bool,
) -> None:
    dying, alive = await raw_backend(death, tcp=tcp), await backend()
    running = await gateway([dying, alive], routing=FIRST)
    body = {"model": "m", "prompt": "x" * 1000}
    answer = await running.post(body)
    assert (answer.status_code, answer.json()) == (200, body)
    assert answer.headers["target-replica"] == "m-1"
    assert running.retries == 1
    assert dying.connections == 1
    await running.until_ended("completed", 200)
    endings = [(o.replica_id, o.ending) for o in first_policy(running).outcomes]
    assert endings == [("m-0", Ending.FAILED), ("m-1", Ending.COMPLETED)]


async def test_a_replica_that_resets_is_still_a_replica(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await raw_backend(reset_at_once), await backend()], routing=FIRST)
    await running.post()
    assert running.ready == ["m-0", "m-1"]


async def test_after_the_first_byte_nobody_else_is_asked(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.begin_stream()
        await peer.chunk(event("a"))
        peer.close()

    other = await backend()
    running = await gateway([await raw_backend(script), other], routing=FIRST)
    assert "replica_failed" in (await running.post()).text
    assert (other.calls, running.retries) == ([], 0)


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_an_error_that_an_engine_answers_is_no_death(
    backend: MakeBackend, gateway: MakeGateway, status: int
) -> None:
    async def handler(call: Call) -> None:
        await call.answer(b"theirs", status=status)

    other = await backend()
    running = await gateway([await backend(handler), other], routing=FIRST)
    answer = await running.post()
    assert (answer.status_code, answer.content, other.calls) == (status, b"theirs", [])


# Keep-alive connections that the replica has closed


async def test_a_stale_connection_is_replaced_without_counting(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"served")
        await peer.request()
        peer.close()  # as a keep-alive timeout that crosses the next request

    replica = await raw_backend(script)
    running = await gateway([replica], max_attempts=1)
    for _ in range(6):
        assert (await running.post()).content == b"served"
    assert replica.connections == 6
    assert running.retries == 0
    assert running.ready == ["m-0"]


async def test_a_form_on_a_stale_connection_is_sent_again(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    body = form(field("model", b"m"))
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append((await peer.request()).partition(b"\r\n\r\n")[2])
        await peer.answer(b"served")
        await peer.request()
        peer.close()

    running = await gateway([await raw_backend(script)], max_attempts=1)
    for _ in range(2):
        answer = await running.http.post(
            TRANSCRIBE, content=body, headers={"content-type": CONTENT_TYPE}
        )
        assert answer.content == b"served"
    assert seen == [body, body]


async def test_a_stale_connection_to_a_dead_replica_leads_elsewhere(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"served")
        await peer.request()
        await dying.refuse()
        peer.close()

    dying = await raw_backend(script)
    running = await gateway([dying, await backend()], routing=FIRST)
    assert (await running.post()).content == b"served"
    assert (await running.post()).json() == {"model": "m"}
    assert (running.retries, running.ready) == (1, ["m-1"])


async def test_a_fresh_connection_that_breaks_too_is_the_replicas_fault(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    requests = 0

    async def script(peer: Peer) -> None:
        nonlocal requests
        while True:
            await peer.request()
            requests += 1
            if requests > 1:
                return peer.close()
            await peer.answer(b"served")

    running = await gateway([await raw_backend(script), await backend()], routing=FIRST)
    assert (await running.post()).content == b"served"
    assert (await running.post()).json() == {"model": "m"}
    assert requests == 3  # served, stale, fresh
    assert running.retries == 1


# Draining replicas


async def refuse_draining(call: Call) -> None:
    await call.answer(b"draining", status=503, headers=[(b"x-aibrix-retry", b"draining")])


async def test_a_replica_that_drains_sends_requests_elsewhere_at_no_cost(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    leaving, other = await backend(refuse_draining), await backend()
    running = await gateway([leaving, other], routing=FIRST, max_attempts=1)
    for _ in range(3):
        answer = await running.post()
        assert (answer.status_code, answer.headers["target-replica"]) == (200, "m-1")
    assert len(leaving.calls) == 1
    assert (running.retries, running.ready) == (0, ["m-1"])
    assert running.endings() == {("completed", 200): 3}
    assert Ending.FAILED not in [o.ending for o in first_policy(running).outcomes]


async def test_a_503_of_the_engine_itself_is_the_clients_to_see(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.answer(b"busy", status=503, headers=[(b"retry-after", b"7")])

    running = await gateway([await backend(handler), await backend()], routing=FIRST)
    answer = await running.post()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert running.ready == ["m-0", "m-1"]


async def test_when_all_drain_a_request_waits_for_a_new_replica(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    leaving = await backend(refuse_draining)
    running = await gateway([leaving], max_attempts=1)
    post = asyncio.create_task(running.post())
    await running.until_held()
    running.set_members([leaving, await backend()])
    answer = await within(post)
    assert (answer.status_code, answer.headers["target-replica"]) == (200, "m-1")


async def test_a_replica_that_says_that_it_drains_no_more_is_routed_to(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()])
    running.app.fleet.mark_draining(running.replica())
    post = asyncio.create_task(running.post())
    await running.until_held()
    running.app.fleet.apply_stats([stats(running, draining=False)], 0.0)
    assert (await within(post)).status_code == 200


# When there is nobody (else)


async def test_after_max_attempts_the_client_is_told_what_the_last_one_said(
    raw_backend: MakeRawBackend, gateway: MakeGateway
) -> None:
    replicas = [await raw_backend(close_at_once) for _ in range(4)]
    running = await gateway(replicas, max_attempts=3)
    answer = await running.post()
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "replica_failed")
    assert "3 replicas of `m`" in error["message"]
    assert "closed by the replica" in error["message"]
    assert sorted(r.connections for r in replicas) == [0, 1, 1, 1]
    assert running.retries == 3
    await running.until_ended("failed", 502)


async def test_when_the_only_replica_dies_the_request_waits_for_its_successor(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    dying = await raw_backend(reset_at_once)
    running = await gateway([dying])
    post = asyncio.create_task(running.post())
    await running.until_held()
    running.set_members([])
    await running.until_held()
    running.set_members([await backend()], epoch="2")
    answer = await within(post)
    assert answer.status_code == 200
    assert dying.connections == 1


async def test_when_the_only_replica_refuses_the_request_waits_until_it_is_confirmed(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    running = await gateway([replica])
    await replica.kill()
    post = asyncio.create_task(running.post())
    await running.until_held()
    assert running.ready == []
    await replica.start()
    running.set_members([replica])
    assert (await within(post)).status_code == 200
    assert running.retries == 1


async def test_a_known_model_without_a_replica_is_held_until_one_is_ready(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([])
    posts = [asyncio.create_task(running.post({"model": "m", "i": i})) for i in range(5)]
    await running.until_held(5)
    held = (await running.samples())[("aibrix_ray_held_requests", (("model", "m"),))]
    assert held == 5
    running.set_members([await backend()])
    assert [(await within(post)).json()["i"] for post in posts] == list(range(5))
    assert running.held == 0


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
async def test_when_nobody_comes_the_client_is_told_when_to_come_back(
    gateway: MakeGateway, wait_s: float
) -> None:
    running = await gateway([], wait_for_replica_s=wait_s, retry_after_s=3.6)
    answer = await running.post()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "4")
    assert answer.json()["error"]["code"] == "no_ready_replica"
    await running.until_ended("failed", 503)


async def test_nobody_else_than_a_dead_replica_is_503_with_its_reason(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    dead = await backend()
    running = await gateway([dead], wait_for_replica_s=0)
    await dead.kill()
    answer = await running.post()
    assert answer.status_code == 503
    assert "cannot connect to" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_waiting_after_an_attempt_is_not_cut_by_that_attempts_deadline(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    clock = Clock()
    running = await gateway(
        [await raw_backend(reset_at_once)],
        clock=clock,
        first_byte_timeout_s=10,
        wait_for_replica_s=60,
    )
    post = asyncio.create_task(running.post())
    await running.until_held()
    clock.advance(20)
    await clock.looked_at()
    running.set_members([await backend()], epoch="2")
    assert (await within(post)).status_code == 200


async def test_one_that_waits_is_told_of_a_change_that_does_not_help(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway({"m": [], "n": []})
    post = asyncio.create_task(running.post())
    await running.until_held()
    running.set_members([await backend()], "n")  # another model's
    await asyncio.sleep(0)
    await running.until_held()
    running.set_members([await backend()])
    assert (await within(post)).status_code == 200


# Overload and policies


async def test_a_full_fleet_is_429_with_retry_after(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    release = asyncio.Event()

    async def handler(call: Call) -> None:
        await release.wait()
        await echo(call)

    replicas = [await backend(handler), await backend(handler)]
    running = await gateway(
        replicas, max_outstanding=2, retry_after_s=2, admission={"max_waiting": 0}
    )
    posts = [asyncio.create_task(running.post()) for _ in range(4)]
    await eventually(lambda: sum(len(r.calls) for r in replicas) == 4, "four are under way")
    answer = await running.post()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["error"]["code"] == "overloaded"
    release.set()
    assert [(await within(post)).status_code for post in posts] == [200] * 4
    assert (await running.post()).status_code == 200
    assert running.endings() == {("completed", 200): 5, ("rejected", 429): 1}


async def test_a_full_replica_is_passed_over_while_another_has_room(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    full, free = await backend(hang), await backend()
    running = await gateway([full, free], routing=FIRST, max_outstanding=1)
    client = await running.connect()
    client.post({"model": "m"})
    await full.call()
    answer = await running.post()
    assert answer.headers["target-replica"] == "m-1"
    client.leave()


async def test_a_policy_may_reject(backend: MakeBackend, gateway: MakeGateway) -> None:
    running = await gateway(
        [await backend()], routing={"policy": "tests.dataplane.policies:Rejecting"}
    )
    answer = await running.post()
    assert answer.status_code == 429
    assert answer.json()["error"]["message"] == "the tier is full"


async def test_a_policy_may_let_a_request_wait(backend: MakeBackend, gateway: MakeGateway) -> None:
    running = await gateway(
        [await backend()], routing={"policy": "tests.dataplane.policies:Queueing"}
    )
    post = asyncio.create_task(running.post())
    await running.until_held()
    cast(Queueing, first_policy(running)).open = True
    running.set_members([r.endpoint.address for r in running.app.fleet.replicas("m")])
    assert (await within(post)).status_code == 200


async def test_a_policy_that_fails_is_a_500_that_tells_nothing(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway(
        [await backend()], routing={"policy": "tests.dataplane.policies:Broken"}
    )
    running.tolerate("ZeroDivisionError: a secret of the policy")
    answer = await running.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    await running.until_ended("failed", 500)


async def test_a_policy_sees_what_is_routed_on_and_learns_how_it_ended(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        await call.begin(SSE)
        await call.write(b'data: 1\n\n: aibrix {"usage":[3,1,2]}\n\n')
        await call.end(b"data: [DONE]\n\n")

    running = await gateway([await backend(handler)], routing=FIRST, aliases=("a",))
    messages = [{"role": "user", "content": "é"}]
    await running.http.post(
        "/v1/chat/completions",
        json={"model": "a", "messages": messages, "stream": True, "max_tokens": 5, "user": "u"},
        headers={"x-request-id": "mine"},
    )
    policy = first_policy(running)
    (request,) = policy.requests
    assert (request.request_id, request.model, request.path) == (
        "mine",
        "m",
        "/v1/chat/completions",
    )
    assert (request.stream, request.max_tokens, request.user) == (True, 5, "u")
    assert request.prompt == '[{"role":"user","content":"é"}]'.encode()
    await running.until_idle()
    (outcome,) = policy.outcomes
    assert (outcome.replica_id, outcome.ending, outcome.status) == ("m-0", Ending.COMPLETED, 200)
    assert outcome.usage is not None
    assert outcome.usage.completion_tokens == 2
    assert outcome.ttft_s is not None
    assert outcome.e2e_s is not None
    assert 0 <= outcome.ttft_s <= outcome.e2e_s
