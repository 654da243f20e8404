"""One request and its answer: uvicorn's cycle, leaner.

It checks no header that a parser has already checked, and writes the head of an answer together
with its first body bytes: each write is a system call.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from aibrix_ray.asgi.types import ON_DISCONNECT, WRITE, AsgiApp, Headers, Message

if TYPE_CHECKING:
    from aibrix_ray.asgi.protocol import HttpProtocol

_NO_BODY = frozenset({204, 304})
_SIZE_LINES = [b"%x\r\n" % size for size in range(4096)]
_LOGGER = logging.getLogger("uvicorn.error")


class _Unheard:
    """Stands for the event of an answer whose application waits for nothing; most never do."""

    def set(self) -> None:
        """Wake nobody."""


_UNHEARD = _Unheard()


class Answer(RequestResponseCycle):  # type: ignore[misc]
    """One request and its answer; the application's `receive` and `send`."""

    def __init__(self, protocol: HttpProtocol, *, keep_alive: bool) -> None:
        # Not the base's: it takes twelve arguments, most of which nobody here reads.
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = _LOGGER
        self.message_event: asyncio.Event | _Unheard = _UNHEARD
        self.on_response = protocol.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self._taken = False
        self._head = b""
        self._chunked = False
        self._left: int | None = None

    async def run_asgi(self, app: AsgiApp) -> None:
        """Run the application; an answer that it leaves incomplete breaks the connection."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            _LOGGER.exception("the application failed")
            if not self.response_started:
                await self.send_500_response()
        finally:
            if not self.response_complete and not self.disconnected:
                _LOGGER.warning("the application ended without completing its answer; cut")
                self.transport.abort()
            self.on_response = _nothing
            self.scope.pop(WRITE, None)  # a circle would wait for the collector

    async def receive(self) -> Message:
        """Return the body, whole if it has come; then, as it comes, its pieces or a disconnect."""
        if not (self.more_body or self._taken or self.disconnected or self.response_complete):
            self._taken = True
            self.flow.resume_reading()
            body, self.body = bytes(self.body), bytearray()
            return {"type": "http.request", "body": body, "more_body": False}
        if self.message_event is _UNHEARD:
            self.message_event = asyncio.Event()
            if self.body:
                self.message_event.set()
        message: Message = await super().receive()
        self._taken = self._taken or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Take an ASGI message; the head is kept until there is something to send with it."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            assert message["type"] == "http.response.start", message["type"]
            self.response_started = True
            if self.waiting_for_100_continue:
                # Nobody knows whether the client will send its body now, so where the next
                # request would begin is not known either.
                self.waiting_for_100_continue = False
                self.keep_alive = self.keep_alive and not self.more_body
            self._head = self._make_head(message["status"], message.get("headers", ()))
            return
        assert not self.response_complete, "a message after the end of the answer"
        body = message.get("body", b"")
        more = message.get("more_body", False)
        self._count(len(body), more)
        if self._chunked:
            end = b"" if more else b"0\r\n\r\n"
            body = b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end
        elif self._left is None and self.scope["method"] == "HEAD":
            body = b""
        if self._head:
            body, self._head = self._head + body, b""
        if body:
            self.transport.write(body)
        if not more:
            self._complete()

    def write(self, body: bytes) -> bool:
        """Send one piece of a body now; see `WRITE`."""
        if self._head or not self._chunked or self.flow.write_paused:
            return False
        if self.disconnected or self.transport.is_closing():
            return False
        size = len(body)
        line = _SIZE_LINES[size] if size < len(_SIZE_LINES) else b"%x\r\n" % size
        self.transport.write(line + body + b"\r\n")
        return True

    def cut(self) -> None:
        """Tell the application that its client has gone, or is treated as gone."""
        if self.response_complete:
            return
        self.disconnected = True
        self.message_event.set()
        hook = self.scope.get(ON_DISCONNECT)
        if hook is not None:
            hook()

    def _make_head(self, status: int, headers: Headers) -> bytes:
        parts = [STATUS_LINE[status]]
        length: int | None = None
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                if b"close" in value.lower():
                    self.keep_alive = False
                continue
            parts.append(b"%b: %b\r\n" % (name, value))
        bodiless = self.scope["method"] == "HEAD" or status in _NO_BODY
        if length is None and not bodiless:
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False  # its body ends with the connection
            else:
                self._chunked = True
                parts.append(b"transfer-encoding: chunked\r\n")
        self._left = None if bodiless else length
        parts.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        return b"".join(parts)

    def _count(self, size: int, more: bool) -> None:
        if self._left is None:
            return
        self._left -= size
        if self._left < 0 or (self._left and not more):
            raise RuntimeError("the answer's body does not have its Content-Length")

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        self.on_response()


def _nothing() -> None:
    """Be called when it is too late."""
