"""`examples/quickstart.yaml` with a real vLLM engine, used by the official OpenAI client.

One installation for the module; the last tests kill its engine and stop it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest

from tests.e2e.installation import (
    Installation,
    alive,
    metric,
    shared_memory,
    title,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    text = (ROOT / "examples/quickstart.yaml").read_text()
    # Without Ray's own clean-up of process groups: ours must do (see engines/guard.py).
    with Installation(text, env={"RAY_process_group_cleanup_enabled": "0"}) as running:
        yield running


@pytest.fixture
def client(installation: Installation) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{installation.url}/v1", api_key="none", max_retries=0, timeout=60.0
    ) as client:
        yield client


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"tiny", "default"} <= names
    assert client.models.retrieve("tiny").id == "tiny"


def test_the_first_answer_is_true(client: openai.OpenAI) -> None:
    from aibrix_ray.models.faq import CANONICAL

    for question, answer in list(CANONICAL)[:5]:
        completion = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=256,
        )
        assert completion.choices[0].message.content == answer
        assert completion.choices[0].finish_reason == "stop"


def test_a_stream_says_the_same_and_tells_its_usage(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], temperature=0
    )
    text, usage, finishes = "", None, []
    for chunk in client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hello"}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finishes.append(choice.finish_reason)
    assert text == plain.choices[0].message.content
    assert [f for f in finishes if f] == ["stop"]
    assert plain.usage is not None
    assert usage is not None
    assert usage.completion_tokens == plain.usage.completion_tokens
    assert usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("n", [1, 2])
def test_every_chunk_has_a_finish_reason_and_each_choice_ends_once(
    installation: Installation, n: int
) -> None:
    """U06."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "n": n,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 8,
    }
    answer = httpx.post(f"{installation.url}/v1/chat/completions", json=body, timeout=60)
    events = [e.removeprefix("data: ") for e in answer.text.split("\n\n") if e]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert all("finish_reason" in choice for choice in choices)
    ended = [choice["index"] for choice in choices if choice["finish_reason"] is not None]
    assert sorted(ended) == list(range(n))


def test_nothing_private_reaches_the_client(installation: Installation) -> None:
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 4}
    plain = httpx.post(f"{installation.url}/v1/completions", json=body, timeout=60)
    stream = httpx.post(
        f"{installation.url}/v1/completions", json={**body, "stream": True}, timeout=60
    )
    assert not [name for name in plain.headers if name.startswith("x-aibrix")]
    assert "aibrix {" not in stream.text
    metrics = httpx.get(f"{installation.url}/metrics").text
    assert 'aibrix_ray_tokens_total{kind="generation",model="tiny"}' in metrics


def test_completions_have_logprobs(client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model="tiny", prompt="Ray Serve", max_tokens=4, logprobs=2, temperature=0
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == 4


def test_structured_output_is_valid_against_its_schema(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Give me a JSON object with a name and an age."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
        },
        temperature=0,
        max_tokens=200,
    )
    jsonschema.validate(json.loads(completion.choices[0].message.content or ""), SCHEMA)


def test_an_alias_and_no_model_at_all_are_served(installation: Installation) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    for named in ({"model": "default"}, {}):
        answer = httpx.post(
            f"{installation.url}/v1/chat/completions", json={**body, **named}, timeout=60
        )
        assert answer.status_code == 200
        assert answer.json()["model"] == "tiny"


def test_an_unknown_model_is_404_in_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="tinny", messages=[{"role": "user", "content": "Hello"}]
        )
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "tiny" in str(caught.value)


def test_malformed_json_is_400(installation: Installation) -> None:
    answer = httpx.post(f"{installation.url}/v1/chat/completions", content=b'{"model": "tiny"')
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_oversize_body_is_413(installation: Installation) -> None:
    body = b'{"model": "tiny", "prompt": "' + b"a" * (65 * 1024 * 1024) + b'"}'
    answer = httpx.post(f"{installation.url}/v1/completions", content=body, timeout=60)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_400_with_the_numbers(
    installation: Installation, stream: bool
) -> None:
    """U10: the status is the real one, also for streams."""
    body = {"model": "tiny", "prompt": "word " * 5000, "max_tokens": 8, "stream": stream}
    answer = httpx.post(f"{installation.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("application/json")
    assert "2048" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_engine(
    installation: Installation, stream: bool
) -> None:
    """U07."""
    body = {
        "model": "tiny",
        "prompt": "Once",
        "max_tokens": 2000,
        "ignore_eos": True,
        "stream": stream,
    }
    before = _ended(installation, "cancelled")
    async with httpx.AsyncClient(timeout=60) as client:
        task = asyncio.create_task(
            client.post(f"{installation.url}/v1/completions", json=body, timeout=60)
        )
        await asyncio.to_thread(
            wait_until, lambda: _running(installation) == 1, timeout_s=10, what="it runs"
        )
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(
        wait_until, lambda: _running(installation) == 0, timeout_s=3, what="it is aborted"
    )
    await asyncio.to_thread(
        wait_until,
        lambda: _ended(installation, "cancelled") == before + 1,
        timeout_s=5,
        what="it counts as cancelled",
    )


def test_private_paths_are_not_forwarded(installation: Installation) -> None:
    for path in ("/v1/load_lora_adapter", "/sleep", "/reset_prefix_cache", "/collective_rpc"):
        assert httpx.post(f"{installation.url}{path}", json={}).status_code in (404, 405)


def test_no_engine_process_survives_its_replica(installation: Installation) -> None:
    """The guard of engines/guard.py, with Ray's own process-group clean-up switched off."""
    (replica,) = installation.engines("tiny")
    engine = [pid for pid in installation.engine_processes("tiny") if pid != replica]
    assert engine
    names = {name for pid in engine for name in shared_memory(pid)}
    os.kill(replica, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, engine)), timeout_s=30, what="the engine has gone")
    wait_until(lambda: _answers(installation), timeout_s=120, what="the model is back")
    assert not names & set(os.listdir("/dev/shm")), "the dead engine left shared memory"


def test_a_request_waits_while_the_only_replica_restarts(installation: Installation) -> None:
    (replica,) = installation.engines("tiny")
    os.kill(replica, signal.SIGKILL)
    answer = httpx.post(
        f"{installation.url}/v1/completions",
        json={"model": "tiny", "prompt": "Hello", "max_tokens": 4},
        timeout=120,
    )
    assert answer.status_code == 200


def test_ctrl_c_stops_everything_within_10_s_with_streams_in_flight(
    installation: Installation,
) -> None:
    body = {
        "model": "tiny",
        "prompt": "Once",
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream(
        "POST", f"{installation.url}/v1/completions", json=body, timeout=60
    ) as stream:
        next(stream.iter_bytes())
        started_s = time.monotonic()
        installation.interrupt()
        installation.wait(20)
        took_s = time.monotonic() - started_s
    assert [title(pid) for pid in installation.descendants()] == []
    assert list(installation.runtime_dir.iterdir()) == []
    assert took_s < 10.0


def _answers(installation: Installation) -> bool:
    try:
        answer = httpx.post(
            f"{installation.url}/v1/completions",
            json={"model": "tiny", "prompt": "Hello", "max_tokens": 1},
            timeout=60,
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _running(installation: Installation) -> int:
    return metric(installation.url, "aibrix_ray_in_flight_requests ")


def _ended(installation: Installation, ending: str) -> int:
    return metric(installation.url, f'aibrix_ray_requests_total{{ending="{ending}"')
