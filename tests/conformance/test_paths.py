"""Every path that is forwarded, asked of a model that generates text."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError

from aibrix_ray.dataplane import FORWARDED_PATHS
from tests.conformance.requests import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    MODEL,
    RESPONSES,
    chat,
    completion,
    response,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TEXT = {"model": MODEL, "input": "x"}
PAIR = {"model": MODEL, "query": "x", "documents": ["y"]}

#: What a text model serves → a request, and what the answer has.
SERVED: dict[str, tuple[dict[str, Any], str]] = {
    CHAT: (chat(), "choices"),
    COMPLETION: (completion(), "choices"),
    RESPONSES: (response(), "output"),
    "/v1/messages": (chat(), "content"),
    "/v1/messages/count_tokens": (chat(), "input_tokens"),
    "/tokenize": ({"model": MODEL, "prompt": "x"}, "tokens"),
    "/detokenize": ({"model": MODEL, "tokens": [100]}, "prompt"),
}
#: What it does not; vLLM has no such path then.
UNSERVED: dict[str, dict[str, Any]] = {
    EMBEDDING: TEXT,
    "/v1/score": {"model": MODEL, "text_1": "x", "text_2": "y"},
    "/score": {"model": MODEL, "text_1": "x", "text_2": "y"},
    "/v1/rerank": PAIR,
    "/v2/rerank": PAIR,
    "/rerank": PAIR,
    "/classify": TEXT,
    "/v1/classify": TEXT,
    "/pooling": TEXT,
    "/v1/pooling": TEXT,
}
FORMS = {"/v1/audio/transcriptions", "/v1/audio/translations"}


def test_no_forwarded_path_is_forgotten() -> None:
    assert SERVED.keys() | UNSERVED.keys() | FORMS == FORWARDED_PATHS


@pytest.mark.parametrize("path", SERVED)
async def test_what_the_model_does_is_answered(http: httpx.AsyncClient, path: str) -> None:
    body, member = SERVED[path]
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert member in answer.json()


@pytest.mark.parametrize("path", [*UNSERVED, *sorted(FORMS)])
async def test_what_the_model_does_not_is_a_404_in_openais_shape(
    http: httpx.AsyncClient, path: str
) -> None:
    if path in FORMS:
        answer = await http.post(path, files={"file": ("a.wav", b"RIFF")}, data={"model": MODEL})
    else:
        answer = await http.post(path, json=UNSERVED[path])
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": f"This model does not serve {path}",
        "type": "invalid_request_error",
        "param": "model",
        "code": "unsupported_endpoint",
    }


async def test_the_official_client_is_told_so(client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError) as refused:
        await client.embeddings.create(model=MODEL, input="x")
    assert refused.value.code == "unsupported_endpoint"


async def test_tokens_go_there_and_back(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "Ray is", "add_special_tokens": False}
    tokens = (await http.post("/tokenize", json=body)).json()["tokens"]
    back = await http.post("/detokenize", json={"model": MODEL, "tokens": tokens})
    assert back.json()["prompt"] == "Ray is"


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == [MODEL, "alias"]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(NotFoundError) as unknown:
        await client.models.retrieve("tinny")
    assert unknown.value.code == "model_not_found"
    assert "tiny" in unknown.value.message
