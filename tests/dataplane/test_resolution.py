"""Which model a request means, and what a request that means none is told."""

from __future__ import annotations

import json

import pytest

from tests.dataplane.backends import Call, MakeBackend
from tests.dataplane.clients import CHAT
from tests.dataplane.gateways import MakeGateway, make_user_config


async def test_an_alias_is_replaced_and_all_other_fields_keep_their_bytes(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    running = await gateway([replica], aliases=("gpt-4o",))
    body = rb'{ "seed": 1e2, "model" : "gpt-4o", "prompt": "\u00e9 \/", "y": [ 0.10, -0 ] }'
    answer = await running.http.post(CHAT, content=body)
    assert answer.status_code == 200
    assert replica.calls[0].body == (
        rb'{"seed":1e2,"model":"m","prompt":"\u00e9 \/","y":[ 0.10, -0 ]}'
    )


async def test_with_one_model_none_need_be_named(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    running = await gateway([replica])
    for body in (b'{"x": 1.0}', b'{"model": null, "x": 1.0}', b'{"model": "", "x": 1.0}'):
        assert (await running.http.post(CHAT, content=body)).status_code == 200
    bodies = [call.json() for call in replica.calls]
    assert bodies == [{"model": "m", "x": 1.0}] * 3
    assert all(b"1.0" in call.body for call in replica.calls)


async def test_with_several_models_one_must_be_named(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway({"m": [await backend()], "n": [await backend()]}, aliases=("best",))
    for body in ({}, {"model": None}, {"model": ""}):
        answer = await running.post(body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "model")
        assert error["code"] == "invalid_request"
        assert "best, m, n" in error["message"]


@pytest.mark.parametrize("model", [1, 1.5, True, [], ["m"], {"name": "m"}])
async def test_a_model_that_is_no_string_is_refused(gateway: MakeGateway, model: object) -> None:
    answer = await (await gateway()).post({"model": model})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"


async def test_an_unknown_model_is_404_with_the_name_that_is_near(gateway: MakeGateway) -> None:
    running = await gateway({"llama-8b": []}, models={"llama-8b": {"aliases": ["assistant"]}})
    answer = await running.post({"model": "lama-8b"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "model_not_found")
    assert (error["type"], error["param"]) == ("invalid_request_error", "model")
    assert "`lama-8b`" in error["message"]
    assert "Did you mean `llama-8b`?" in error["message"]
    assert "`assistant`?" in (await running.post({"model": "asistant"})).json()["error"]["message"]
    assert "Did you mean" not in (await running.post({"model": "zz"})).json()["error"]["message"]


async def test_the_answer_to_an_absurd_model_name_is_short(gateway: MakeGateway) -> None:
    answer = await (await gateway()).post({"model": "é" * 5_000})
    assert answer.status_code == 404
    assert len(answer.content) < 1_000


async def test_an_alias_of_a_model_that_is_not_there_is_unknown(gateway: MakeGateway) -> None:
    running = await gateway(models={"gone": {"aliases": ["old"]}})
    assert (await running.post({"model": "old"})).status_code == 404
    assert (await running.post({"model": "gone"})).status_code == 404


MALFORMED = {
    "empty": b"",
    "blank": b" \r\n ",
    "cut": b'{"model": "m"',
    "an array": b'[{"model": "m"}]',
    "a string": b'"model"',
    "null": b"null",
    "single quotes": b"{'model': 'm'}",
    "trailing": b'{"model": "m"} {}',
    "two commas": b'{"model": "m",, "x": 1}',
    "NaN": b'{"model": "m", "x": NaN}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "m"}',
    "utf-16": '{"model": "m"}'.encode("utf-16"),
    "invalid utf-8 in the model": b'{"model": "m\xff"}',
    "a lone surrogate": rb'{"model": "m", "prompt": "\ud800"}',
    "100,000 levels": b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 open brackets": b"[" * 100_000,
    "a control character": b'{"model": "m\x00"}',
    "form": b"model=m&prompt=x",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_no_json_object_is_refused_before_a_replica_sees_it(
    backend: MakeBackend, gateway: MakeGateway, body: bytes
) -> None:
    replica = await backend()
    running = await gateway([replica])
    client = await running.connect()
    client.post(body)
    answer = await client.answer()
    assert answer.status == 400
    assert (answer.error["code"], answer.error["type"]) == (
        "invalid_request",
        "invalid_request_error",
    )
    assert len(answer.body) < 1_000
    assert replica.calls == []
    await running.until_ended("rejected", 400, model="")
    client.post({"model": "m"})  # the connection can still be used
    assert (await client.answer()).status == 200


async def test_invalid_utf8_in_a_field_that_is_not_read_is_the_engines_to_refuse(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def handler(call: Call) -> None:
        with pytest.raises(UnicodeDecodeError):
            call.json()
        await call.answer(b'{"error": {}}', status=400)

    replica = await backend(handler)
    running = await gateway([replica])
    body = b'{"model": "m", "prompt": "\xff"}'
    assert (await running.http.post(CHAT, content=body)).status_code == 400
    assert replica.calls[0].body == body


async def test_neither_query_nor_headers_override_the_models_name(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    mine, other = await backend(), await backend()
    running = await gateway({"m": [mine], "n": [other]})
    answer = await running.http.post(
        f"{CHAT}?model=n", json={"model": "m"}, headers={"model": "n", "x-model": "n"}
    )
    assert answer.status_code == 200
    assert (len(mine.calls), len(other.calls)) == (1, 0)


@pytest.mark.parametrize("last", ["m", "n"])
async def test_a_model_named_twice_is_the_last_one_for_the_gateway_and_for_an_engine(
    backend: MakeBackend, gateway: MakeGateway, last: str
) -> None:
    replicas = {"m": await backend(), "n": await backend()}
    running = await gateway({name: [replica] for name, replica in replicas.items()})
    first = "n" if last == "m" else "m"
    body = b'{"model": "%b", "\\u006dodel": "%b"}' % (first.encode(), last.encode())
    await running.http.post(CHAT, content=body)
    (call,) = replicas[last].calls
    assert json.loads(call.body)["model"] == last


async def test_names_resolve_by_the_settings_that_hold_now(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    running = await gateway([await backend()], aliases=("old",))
    assert (await running.post({"model": "old"})).status_code == 200
    running.app.reconfigure(make_user_config({"aliases": ["new"]}, {}))
    assert (await running.post({"model": "old"})).status_code == 404
    assert (await running.post({"model": "new"})).status_code == 200
