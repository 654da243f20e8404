"""Whatever is sent: an answer, in time, below 500, and nothing left under way.

Requests come from OpenAI's published document and from our own, as schemathesis makes them, valid
and invalid; and from hypothesis, which knows no document. The gateway is a process of its own here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.generation import GenerationMode

from aibrix_ray.asgi import tcp_socket
from aibrix_ray.dataplane.openapi import document
from aibrix_ray.dataplane.wire import JSON_PATHS
from tests.conformance.document import part_of_document
from tests.conformance.requests import CHAT, COMPLETION, MODEL, RESPONSES
from tests.engines.conftest import EngineProcess

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
RUN = """
import asyncio, sys
from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane.standalone import parse_backend, serve_standalone
args = GatewayArgs(port=int(sys.argv[1]))
asyncio.run(serve_standalone(args, GatewayUserConfig(), [parse_backend(sys.argv[2])]))
"""
#: Far beyond what the tiny model takes for an answer; reached only by a hang.
HANG_S = 30.0
BOUND = {CHAT: "max_completion_tokens", COMPLETION: "max_tokens", RESPONSES: "max_output_tokens"}
#: The same requests in each run; a failure names the body.
REPEATABLE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def http(replica: EngineProcess) -> Iterator[httpx.Client]:
    """A client of a gateway; in the end the gateway lives and has nothing under way."""
    with contextlib.closing(tcp_socket("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", RUN, str(port), f"{MODEL}=uds:{replica.uds}"]
    process = subprocess.Popen(command, cwd=ROOT)
    base = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=base, timeout=HANG_S, trust_env=False) as client:
            _until_it_answers(client)
            yield client
            assert _in_flight(client) == 0
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(HANG_S)


def _until_it_answers(client: httpx.Client) -> None:
    until_s = time.monotonic() + HANG_S
    while time.monotonic() < until_s:
        with contextlib.suppress(httpx.ConnectError):
            client.get("/healthz")
            return
        time.sleep(0.05)
    pytest.fail("the gateway does not answer")


def _in_flight(client: httpx.Client) -> float:
    text = client.get("/metrics", params={"scope": "process"}).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.endswith("in_flight_requests")
    )


def check(answer: httpx.Response) -> None:
    """Assert what holds of every answer."""
    assert answer.status_code < 500, (answer.request.content[:2000], answer.text[:2000])
    if answer.status_code >= 400:
        assert len(answer.content) <= 64 * 1024
        error = answer.json()["error"]
        assert isinstance(error["message"], str)
        if not answer.request.url.path.startswith("/v1/messages"):
            assert isinstance(error["code"], str)


def post(http: httpx.Client, path: str, body: object) -> httpx.Response:
    """Post as JSON; to our model, and for few tokens, where the body has a place for that."""
    if isinstance(body, dict):
        body = body | {"model": MODEL}
        bound = BOUND.get(path)
        if path == COMPLETION:
            body.pop("echo", None)  # test_errors.py has what vLLM does with an empty prompt
        if bound is not None and isinstance(body.get(bound, 0), int | None):
            body[bound] = 2
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(path, content=content, headers={"content-type": "application/json"})


MAIN_PATHS = ("/chat/completions", "/completions", "/embeddings", "/responses", "/models")
OPENAI = schemathesis.openapi.from_dict(part_of_document([*MAIN_PATHS]))
OURS = schemathesis.openapi.from_dict(document())
MODES = pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"]
)


@MODES
@pytest.mark.parametrize("path", MAIN_PATHS[:-1])
def test_openais_document_finds_no_server_error(
    http: httpx.Client, path: str, mode: GenerationMode
) -> None:
    @REPEATABLE
    @given(OPENAI[path]["POST"].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        check(post(http, f"/v1{path}", case.body))

    run()


def test_openais_list_of_models_finds_no_server_error(http: httpx.Client) -> None:
    @REPEATABLE
    @given(OPENAI["/models"]["GET"].as_strategy())
    def run(case: Any) -> None:
        check(http.get("/v1/models", params=case.query))

    run()


@pytest.mark.parametrize("path", document()["paths"])
def test_our_own_document_finds_no_server_error_and_keeps_its_word(
    http: httpx.Client, path: str
) -> None:
    @REPEATABLE
    @given(OURS[path]["GET"].as_strategy())
    def run(case: Any) -> None:
        answer = http.get(str(case.formatted_path), params=case.query)
        check(answer)
        case.validate_response(schemathesis.Response.from_any(answer))

    run()


NAMES = """
messages prompt input stream stream_options max_tokens max_completion_tokens temperature top_p n
stop seed logprobs top_logprobs logit_bias tools tool_choice response_format user best_of echo
presence_penalty suffix instructions text reasoning metadata include previous_response_id role
content type name model top_k min_tokens ignore_eos structured_outputs truncate_prompt_tokens
prompt_logprobs add_special_tokens tokens documents query chat_template_kwargs
"""
FIELDS = st.sampled_from(NAMES.split())
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["user", "system", "auto", "json_object", "text", MODEL, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("path", sorted(JSON_PATHS))
def test_any_values_in_known_fields_are_answered(http: httpx.Client, path: str) -> None:
    @REPEATABLE
    @given(st.dictionaries(FIELDS, VALUES, max_size=6))
    def run(body: dict[str, Any]) -> None:
        check(post(http, path, body))

    run()


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/v1/audio/transcriptions", "/v1/models"])
def test_any_bytes_are_answered(http: httpx.Client, path: str) -> None:
    kinds = st.sampled_from(
        ["application/json", "multipart/form-data; boundary=x", "text/plain", "é"]
    )

    @REPEATABLE
    @given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), kinds)
    def run(content: bytes, kind: str) -> None:
        check(http.post(path, content=content, headers={b"content-type": kind.encode("latin-1")}))

    run()
