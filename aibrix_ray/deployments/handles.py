"""Python handles: the gateway without HTTP, for code that runs on the Ray cluster.

client = aibrix_ray.connect()
answer = await client.chat(messages=[{"role": "user", "content": "Hello"}])
async for event in client.chat_stream(messages=[…]): …
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import ray
from ray import serve


class Client:
    """Async access to a gateway application; every call obeys the same policies as HTTP.

    Methods take the fields of OpenAI's request bodies as keyword arguments, return or yield the
    decoded answers, and raise `aibrix_ray.errors.ApiError` with the status, type and code that an
    HTTP client would get.
    """

    def __init__(self, application: str = "gateway") -> None:
        self._handle = serve.get_deployment_handle("gateway", application)

    async def chat(self, **body: Any) -> dict[str, Any]:
        """Return a chat completion."""
        return await self._call("/v1/chat/completions", body)

    async def completions(self, **body: Any) -> dict[str, Any]:
        """Return a text completion."""
        return await self._call("/v1/completions", body)

    async def embeddings(self, **body: Any) -> dict[str, Any]:
        """Return embeddings."""
        return await self._call("/v1/embeddings", body)

    def chat_stream(self, **body: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a chat completion."""
        return self._stream("/v1/chat/completions", body)

    def completions_stream(self, **body: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a text completion."""
        return self._stream("/v1/completions", body)

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._handle.call.remote(path, body)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        return cast(dict[str, Any], answer)

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            async for event in self._handle.options(stream=True).stream.remote(path, body):
                yield event
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None


def connect(application: str = "gateway") -> Client:
    """Return a client of the gateway application of this name; joins the cluster if need be.

    Raises:
        ConnectionError: no Ray cluster is reachable.
    """
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    return Client(application)


def _cause(error: ray.exceptions.RayTaskError) -> BaseException:
    cause = error.cause
    return cause if isinstance(cause, BaseException) else error
