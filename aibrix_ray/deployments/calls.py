"""A request that comes from Python instead of a socket: the same application, no HTTP between.

Drives the ASGI application in process, so a Python caller meets the same policies, limits and
errors as an HTTP client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from aibrix_ray.asgi import ON_DISCONNECT, AsgiApp, Message, Scope
from aibrix_ray.dataplane.access import TRUSTED
from aibrix_ray.errors import EngineError

_END = None


class InProcessCall:
    """One request to `app`; use `answer` or `events`, once."""

    def __init__(self, app: AsgiApp, path: str, body: dict[str, Any]) -> None:
        self._app = app
        self._body = msgspec.json.encode(body)
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=16)
        self._scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            ON_DISCONNECT: None,
            TRUSTED: True,
        }

    async def answer(self) -> dict[str, Any]:
        """Return the decoded answer.

        Raises:
            EngineError: the answer is an error; carries status, code and the JSON body.
        """
        async with self._running():
            status, data = await self._start(), b""
            async for chunk in self._chunks():
                data += chunk
        return _decoded(status, data)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each event of a streamed answer, without `[DONE]`.

        Raises:
            EngineError: the answer is an error, or the stream broke.
        """
        async with self._running():
            status = await self._start()
            if status >= 400:
                _decoded(status, b"".join([chunk async for chunk in self._chunks()]))
            rest = b""
            async for chunk in self._chunks():
                *whole, rest = (rest + chunk).split(b"\n\n")
                for event in whole:
                    decoded = _event(event)
                    if decoded is not None:
                        yield decoded

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            if not task.done():
                # The caller has left: the engine must stop generating for nobody.
                hook = self._scope.get(ON_DISCONNECT)
                if hook is not None:
                    hook()
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": self._body, "more_body": False}

        try:
            await self._app(self._scope, receive, self._messages.put)
        finally:
            await self._messages.put(_END)

    async def _start(self) -> int:
        message = await self._messages.get()
        if message is None:
            raise EngineError(502, "the gateway gave no answer")
        status: int = message["status"]
        return status

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._messages.get()
            if message is None:
                return
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return


def _decoded(status: int, data: bytes) -> dict[str, Any]:
    content = msgspec.json.decode(data) if data else {}
    if status >= 400:
        raise _error(status, content)
    return dict(content)


def _event(text: bytes) -> dict[str, Any] | None:
    data = b"".join(
        line.removeprefix(b"data:").strip() for line in text.split(b"\n") if line[:5] == b"data:"
    )
    if not data or data == b"[DONE]":
        return None
    event: dict[str, Any] = msgspec.json.decode(data)
    if "error" in event:
        raise _error(502, event)
    return event


def _error(status: int, content: Any) -> EngineError:
    details = content.get("error", {}) if isinstance(content, dict) else {}
    error = EngineError(status, str(details.get("message", content)), body=content)
    error.code = str(details.get("code") or error.code)
    error.type = str(details.get("type") or error.type)
    error.param = details.get("param")
    return error
