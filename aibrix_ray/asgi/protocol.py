"""The connection of one HTTP client: uvicorn's httptools protocol with a lean request cycle.

uvicorn parses and keeps the connection; per request this one builds a smaller scope, checks no
header that a parser has already checked, and writes the head of an answer together with its first
body bytes: each write is a system call. It also tells the application when its client goes away.
"""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from aibrix_ray.asgi.types import ON_DISCONNECT, TASK, AsgiApp, Headers, Message

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_NO_BODY = frozenset({204, 304})
_BAD_HTTP = (
    b'{"error":{"message":"invalid HTTP request","type":"invalid_request_error",'
    b'"param":null,"code":"invalid_http"}}'
)
_LOGGER = logging.getLogger("uvicorn.error")


class Answer(RequestResponseCycle):  # type: ignore[misc]
    """One request and its answer; the application's `receive` and `send`."""

    def __init__(self, protocol: HttpProtocol, *, keep_alive: bool) -> None:
        # Not the base's: it takes twelve arguments, most of which nobody here reads.
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = _LOGGER
        self.message_event = asyncio.Event()
        self.on_response = protocol.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
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

    async def send(self, message: Message) -> None:
        """Take an ASGI message; the head is kept until there is something to send with it."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            assert message["type"] == "http.response.start", message["type"]
            self.response_started = True
            self.waiting_for_100_continue = False
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
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _nothing() -> None:
    """Be called when it is too late."""


class HttpProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """One client connection."""

    closing_after_answer = False
    cycle: Answer | None
    _running: Answer | None = None
    _replaying = False

    def data_received(self, data: bytes) -> None:
        """Parse; an offer to upgrade is declined by serving the request as it is."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._replaying:
            return
        self.url = b""
        self.expect_100_continue = False
        self.headers: Headers = []
        self.scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": self.headers,
            ON_DISCONNECT: None,
        }

    def on_headers_complete(self) -> None:
        """Start the application; a pipelined request waits for the one before it."""
        if self._replaying:
            self._replaying = False
            return
        parser = self.parser
        version = parser.get_http_version()
        scope = self.scope
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        self._split_url(scope)
        keep_alive = version != "1.0" and parser.should_keep_alive()
        before = self.cycle
        self.cycle = Answer(self, keep_alive=keep_alive)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        if not self._replaying:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        if not self._replaying:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        """Note the request's end, and go on reading: that is how a disconnect is noticed."""
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application whose answer is not complete."""
        answers = [self._running, *(answer for answer, _ in self.pipeline)]
        super().connection_lost(exc)
        for answer in answers:
            if answer is not None and not answer.response_complete:
                answer.disconnected = True
                hook = answer.scope.get(ON_DISCONNECT)
                if hook is not None:
                    hook()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the shape that API clients parse."""
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(_BAD_HTTP)
        )
        self.transport.write(head + _BAD_HTTP)
        self.transport.close()

    def close_after_answer(self) -> None:
        """Close with the answer under way, or with the answer to the next request."""
        self.closing_after_answer = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    @property
    def idle(self) -> bool:
        """No request is under way on this connection."""
        return self.cycle is None or self.cycle.response_complete

    def _split_url(self, scope: dict[str, Any]) -> None:
        url = httptools.parse_url(self.url)
        raw_path = cast(bytes, url.path) or b"/"
        path = raw_path.decode("ascii")
        scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""

    def _start_asgi_task(self, cycle: Answer, app: AsgiApp) -> None:
        if self.closing_after_answer:
            cycle.keep_alive = False
        self._running = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        cycle.scope[TASK] = task
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _should_upgrade(self) -> bool:
        return False

    def _decline_upgrade(self, rest: bytes) -> None:
        # The parser stops behind the head of a request that offers an upgrade (what Java's client
        # sends first) and skips its body. A new one is told of the body's framing alone and goes on
        # with the same request.
        framing = [
            b"%b: %b\r\n" % pair
            for pair in self.headers
            if pair[0] in (b"content-length", b"transfer-encoding")
        ]
        self.parser = httptools.HttpRequestParser(self)
        if framing and self.cycle is not None:
            self.cycle.more_body = True
            self._replaying = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
        if rest:
            self.data_received(rest)
