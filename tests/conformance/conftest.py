"""One real engine behind a gateway, and the official client in front of both.

Every answer has gone the whole way: the client, a TCP socket, the gateway, a Unix socket, the
replica's middleware, vLLM. The engine is started once; each test gets a gateway of its own, which
fails the test if anything is left under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
import uvloop
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import Address
from tests.conformance.requests import MODEL
from tests.dataplane.gateways import Gateway
from tests.engines.conftest import CONTEXT, EngineProcess, checkpoint, engine_process, short_folder

TEMPLATE = Path(__file__).with_name("tools.jinja")

__all__ = ["checkpoint"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on uvloop, as a gateway does."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def replica(checkpoint: Path) -> Iterator[EngineProcess]:
    """The engine, as a replica serves it: answers cleaned, tools known to template and parser."""
    with (
        short_folder() as folder,
        _without_structural_tags(),
        engine_process(
            folder,
            checkpoint,
            max_model_len=CONTEXT,
            max_num_seqs=8,
            tool_parser="hermes",
            args={
                "chat_template": str(TEMPLATE),
                # Else a model that knows nothing of JSON fills its tokens with legal blanks.
                "structured_outputs_config": {
                    "backend": "xgrammar",
                    "disable_any_whitespace": True,
                },
                "seed": 7,
            },
        ) as owner,
    ):
        yield owner


@contextlib.contextmanager
def _without_structural_tags() -> Iterator[None]:
    """Have forced tools guided by their schema, whose grammar can be told to allow no blanks.

    That of vLLM's structural tags cannot, and the tiny model fills its tokens with them.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENFORCE_STRICT_TOOL_CALLING", "0")
        yield


@pytest.fixture
async def gateway(replica: EngineProcess) -> AsyncIterator[Gateway]:
    """A gateway that knows the engine as the model `tiny`, and `alias` for it."""
    made = Gateway(
        {MODEL: [Address(uds=replica.uds)]},
        user_config=GatewayUserConfig.model_validate({"models": {MODEL: {"aliases": ["alias"]}}}),
        args=GatewayArgs(),
        max_outstanding=512,
    )
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def http(gateway: Gateway) -> httpx.AsyncClient:
    """A plain client of the gateway."""
    return gateway.http


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    """The official client of the gateway; it repeats nothing by itself."""
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{gateway.port}/v1",
        api_key="any",
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client
