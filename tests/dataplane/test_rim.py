"""What stands around the gateway's application, piece by piece."""

from __future__ import annotations

import datetime
import json
import logging
from typing import Any

import pytest

from aibrix_ray.asgi import Receive, Scope, Send
from aibrix_ray.config import GatewayArgs
from aibrix_ray.config.http import HttpConfig
from aibrix_ray.dataplane.access_log import line
from aibrix_ray.dataplane.facts import FACTS, RequestFacts
from aibrix_ray.dataplane.rim import Rim
from tests.dataplane.backends import DONE, SSE, Call, MakeBackend, event
from tests.dataplane.clients import CHAT
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.waiting import eventually

LOG = {"http": {"access_log": True}}


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for an application."""


def test_with_nothing_switched_on_the_application_is_served_itself() -> None:
    assert Rim(application, GatewayArgs().http).app is application
    assert Rim(application, HttpConfig(access_log=True)).app is not application


# The access log


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> LogLines:
    caplog.set_level(logging.INFO, logger="aibrix_ray.access")
    return LogLines(caplog)


class LogLines:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def all(self) -> list[dict[str, Any]]:
        return [
            json.loads(record.getMessage())
            for record in self._caplog.records
            if record.name == "aibrix_ray.access"
        ]

    async def only(self) -> dict[str, Any]:
        """Return the line of the one request that was made."""
        await eventually(lambda: len(self.all) == 1, lambda: f"lines: {self.all}")
        return self.all[0]


async def test_a_request_leaves_one_line_that_tells_what_it_was_and_not_what_it_said(
    backend: MakeBackend, gateway: MakeGateway, lines: LogLines
) -> None:
    running = await gateway([await backend()], args=LOG)
    client = await running.connect()
    body = {"model": "m", "prompt": "a SECRET prompt"}
    client.post(body, f"{CHAT}?key=SECRET", "authorization: Bearer SECRET", "x-request-id: mine")
    answer = await client.answer()
    found = await lines.only()
    assert "SECRET" not in json.dumps(found)
    assert found["duration_s"] >= found["ttft_s"] > 0
    assert datetime.datetime.fromisoformat(found["time"]).tzinfo is not None
    assert found | {"time": "", "ttft_s": 0, "duration_s": 0, "replica": ""} == {
        "time": "",
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "ending": "completed",
        "model": "m",
        "replica": "",
        "tenant": "",
        "retries": 0,
        "ttft_s": 0,
        "duration_s": 0,
        "prompt_tokens": None,
        "completion_tokens": None,
        "bytes_out": len(answer.body),
    }


@pytest.mark.parametrize(
    ("path", "status", "ending"),
    [
        ("/healthz", 200, "completed"),
        ("/none", 404, "client_error"),
        (CHAT, 405, None),
        ("/readyz?secret=1", 200, "completed"),
    ],
)
async def test_what_the_gateway_answers_itself_is_logged_too(
    gateway: MakeGateway, lines: LogLines, path: str, status: int, ending: str | None
) -> None:
    client = await (await gateway(args=LOG)).connect()
    client.get(path)
    await client.answer()
    found = await lines.only()
    assert (found["path"], found["status"]) == (path.partition("?")[0], status)
    assert ending is None or found["ending"] == ending


async def test_a_client_that_leaves_is_logged_as_that(
    backend: MakeBackend, gateway: MakeGateway, lines: LogLines
) -> None:
    async def handler(call: Call) -> None:
        await call.begin(SSE)
        await call.write(event("a"))
        await call.until_disconnect()

    running = await gateway([await backend(handler)], args=LOG)
    client = await running.connect()
    client.post({"model": "m", "stream": True})
    await client.head()
    first = await client.chunk()
    client.leave()
    found = await lines.only()
    assert (found["ending"], found["status"]) == ("cancelled", 200)
    assert found["bytes_out"] == len(first)


async def test_a_client_that_leaves_before_an_answer_has_status_499(
    backend: MakeBackend, gateway: MakeGateway, lines: LogLines
) -> None:
    async def handler(call: Call) -> None:
        await call.until_disconnect()

    replica = await backend(handler)
    running = await gateway([replica], args=LOG)
    client = await running.connect()
    client.post({"model": "m"})
    await replica.call()
    client.leave()
    found = await lines.only()
    assert (found["ending"], found["status"], found["bytes_out"]) == ("cancelled", 499, 0)


async def test_what_the_data_plane_knows_better_stands(lines: LogLines) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        facts: RequestFacts = scope[FACTS]
        facts.ending, facts.ttft_s, facts.replica = "rejected", 0.25, "m-1"
        facts.tenant, facts.prompt_tokens, facts.completion_tokens = "acme", 7, 5
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    async def receive() -> dict[str, Any]:
        raise AssertionError("nobody reads")

    async def send(message: Any) -> None:
        """Take what is sent."""

    rim = Rim(app, HttpConfig(access_log=True))
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "scheme": "http"}
    await rim.app(scope, receive, send)
    found = await lines.only()
    assert (found["status"], found["ending"], found["ttft_s"]) == (429, "rejected", 0.25)
    assert (found["replica"], found["tenant"]) == ("m-1", "acme")
    assert (found["prompt_tokens"], found["completion_tokens"]) == (7, 5)
    assert (found["client"], found["bytes_out"]) == ("", 2)


async def test_a_path_that_is_made_up_takes_little_room(
    gateway: MakeGateway, lines: LogLines
) -> None:
    client = await (await gateway(args=LOG)).connect()
    client.get("/" + "a" * 10_000)
    await client.answer()
    assert len((await lines.only())["path"]) == 256


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    facts = RequestFacts(started_s=0.0, path='/a\n"\u2028\x1b[31m')
    text = line(facts, datetime.datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=datetime.UTC))
    assert len(text.splitlines()) <= 2  # U+2028 may stand in JSON as it is
    assert "\n" not in text
    assert json.loads(text)["path"] == facts.path
    assert json.loads(text)["time"] == "2026-01-02T03:04:05.678+00:00"


# CORS

ORIGIN = "https://chat.example.com"
CORS = {"http": {"cors": {"allow_origins": [ORIGIN]}}}
PREFLIGHT = (
    f"origin: {ORIGIN}",
    "access-control-request-method: POST",
    "access-control-request-headers: authorization, content-type",
)


async def test_a_preflight_is_answered_at_the_rim(gateway: MakeGateway) -> None:
    running = await gateway(args=CORS)
    client = await running.connect()
    client.get(CHAT, *PREFLIGHT, method="OPTIONS")
    answer = await client.answer()
    assert answer.status == 200
    assert answer.header("access-control-allow-origin") == ORIGIN
    assert answer.header("access-control-allow-headers") == "authorization, content-type"
    assert "POST" in (answer.header("access-control-allow-methods") or "")
    assert answer.header("access-control-max-age") == "600"
    assert running.begun == 0  # no request of ours, so no key is asked for


async def test_a_preflight_of_another_origin_is_refused(gateway: MakeGateway) -> None:
    client = await (await gateway(args=CORS)).connect()
    client.get(CHAT, "origin: https://evil.example", *PREFLIGHT[1:], method="OPTIONS")
    answer = await client.answer()
    assert answer.status == 400
    assert answer.header("access-control-allow-origin") is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_forwarded_answer_may_be_read_by_an_allowed_page(
    backend: MakeBackend, gateway: MakeGateway, stream: bool
) -> None:
    async def handler(call: Call) -> None:
        if not stream:
            return await call.answer()
        await call.begin(SSE)
        await call.end(event("a") + DONE)

    running = await gateway([await backend(handler)], args=CORS)
    client = await running.connect()
    client.post({"model": "m", "stream": stream}, CHAT, f"origin: {ORIGIN}")
    answer = await client.answer()
    assert answer.header("access-control-allow-origin") == ORIGIN
    assert "x-request-id" in (answer.header("access-control-expose-headers") or "")
    assert answer.header("vary") == "Origin"
    client.post({"model": "m", "stream": stream}, CHAT, "origin: https://evil.example")
    answer = await client.answer()
    assert (answer.status, answer.header("access-control-allow-origin")) == (200, None)


async def test_an_error_may_be_read_by_an_allowed_page_too(gateway: MakeGateway) -> None:
    client = await (await gateway(args=CORS)).connect()
    client.post({"model": "none"}, CHAT, f"origin: {ORIGIN}")
    answer = await client.answer()
    assert (answer.status, answer.header("access-control-allow-origin")) == (404, ORIGIN)


async def test_every_origin_may_be_allowed(gateway: MakeGateway) -> None:
    running = await gateway(args={"http": {"cors": {"allow_origins": ["*"]}}})
    client = await running.connect()
    client.get("/v1/models", "origin: https://any.example")
    assert (await client.answer()).header("access-control-allow-origin") == "*"


# Methods


@pytest.mark.parametrize(
    ("path", "allow"), [("/v1/models", {"GET", "HEAD"}), ("/metrics", {"GET", "HEAD"})]
)
async def test_a_wrong_method_is_told_the_right_ones(
    gateway: MakeGateway, path: str, allow: set[str]
) -> None:
    client = await (await gateway()).connect()
    client.get(path, method="DELETE")
    answer = await client.answer()
    assert answer.status == 405
    assert set((answer.header("allow") or "").split(", ")) == allow
