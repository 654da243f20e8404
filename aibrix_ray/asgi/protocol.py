"""The connection of one HTTP client: uvicorn's httptools protocol with limits and less work.

uvicorn keeps the connection; per request this one builds a smaller scope, holds the client to the
server's limits, and tells the application when its client goes away. What breaks a limit or HTTP
itself is answered here, behind the answers that are still under way, and the connection ends.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aibrix_ray.asgi.answer import Answer
from aibrix_ray.asgi.connections import MAX_LINGERING, Connections
from aibrix_ray.asgi.limits import ConnectionLimits
from aibrix_ray.asgi.refusal import refusal
from aibrix_ray.asgi.types import ON_DISCONNECT, TASK, WRITE, AsgiApp, Headers
from aibrix_ray.errors import (
    ApiError,
    HeadersTooLarge,
    InvalidHttp,
    PayloadTooLarge,
    RequestTimeout,
    TooManyConnections,
    UriTooLong,
)

_ASGI = {"version": "3.0", "spec_version": "2.3"}
#: What is being read: nothing that has begun, a head, a body.
_IDLE, _HEAD, _BODY = range(3)
#: A refused client gets so long to read its answer before the connection is reset.
LINGER_S = 2.0
#: A closed connection whose client takes nothing of what is left for it is reset after so long.
STUCK_S = 30.0


class HttpProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """One client connection.

    Attributes:
        since_s: the loop's time of the last progress that its client made.
        closing_after_answer: it ends with the next answer.
    """

    cycle: Answer | None
    server_state: Connections
    closing_after_answer = False
    since_s = 0.0
    _stage = _IDLE
    _unchecked_bytes = 0
    _running: Answer | None = None
    _replaying = False
    _refusal: bytes | None = None
    _unsent_bytes = -1

    def __init__(
        self, config: uvicorn.Config, shared: Connections, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config=config, server_state=shared, app_state={}, _loop=loop)
        self._limits: ConnectionLimits = shared.limits
        self.closing_after_answer = shared.draining

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)
        self.since_s = self.loop.time()
        if self.server_state.full:
            self.refuse(TooManyConnections("Too many connections are open", retry_after_s=1.0))

    def data_received(self, data: bytes) -> None:
        """Parse; an offer to upgrade is declined by serving the request as it is."""
        if self._refusal is not None:
            return
        if self._stage == _IDLE:
            self.since_s = self.loop.time()
        self._unchecked_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            if not isinstance(cause, ApiError):
                cause = InvalidHttp("invalid HTTP request")
            self.refuse(cause)
        if self._stage == _IDLE:
            self._unchecked_bytes = 0
        elif self._unchecked_bytes > self._limits.max_header_bytes:
            # No end of a head, a chunk's head or a trailer in all of these bytes.
            self.refuse(self._header_error())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application whose answer is not complete."""
        answers = [self._running, *(answer for answer, _ in self.pipeline)]
        super().connection_lost(exc)
        self.server_state.lingering.discard(self)
        for answer in answers:
            if answer is not None:
                answer.cut()

    # httptools callbacks

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._replaying:
            return
        self._stage = _HEAD
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

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        if not self._replaying:
            self.url += url
            if len(self.url) > self._limits.max_url_bytes:
                raise UriTooLong(
                    f"The target of the request is longer than {self._limits.max_url_bytes} bytes"
                )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; a trailer is dropped, because its request may be under way already."""
        if self._stage != _HEAD or self._replaying:
            return
        name = name.lower()
        self.headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """Start the application; a pipelined request waits for the one before it."""
        if self._replaying:
            self._replaying = False
            self._stage = _BODY
            return
        self._check_head()
        parser = self.parser
        version = parser.get_http_version()
        scope = self.scope
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
            self.expect_100_continue = False  # not known before 1.1, so to be ignored
        self._split_url(scope)
        keep_alive = version != "1.0" and parser.should_keep_alive()
        before = self.cycle
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise InvalidHttp("too many pipelined requests")
        self._stage = _BODY
        self.cycle = Answer(self, keep_alive=keep_alive)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Keep body bytes for the application, and read no faster than it does."""
        self._unchecked_bytes = 0
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return  # nobody wants it any more, and it gets no more time
        self.since_s = self.loop.time()
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Note the request's end, and go on reading: that is how a disconnect is noticed."""
        self._stage = _IDLE
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
        if not self.pipeline:
            self.flow.resume_reading()

    # What answers and the server call

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or wait for one, or end the connection."""
        if self.transport.is_closing():
            return
        running = self._running
        assert running is not None, "an answer ended that nobody had started"
        if not running.keep_alive:
            self._end()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            if not self.pipeline:
                self.flow.resume_reading()
        elif self._refusal is not None:
            self._say(self._refusal)
        else:
            self.flow.resume_reading()
            self.since_s = self.loop.time()

    def refuse(self, error: ApiError) -> None:
        """Read no further request; answer `error` behind the answers under way, then close."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self.server_state.refusals[error.code] += 1
        self._refusal = refusal(error)
        if self._answering:
            if self._stage == _BODY:
                self._refuse_half_a_request(self._refusal)
        elif self._stage == _BODY:
            self._end()  # a body that nobody wants: its request has been answered
        else:
            self._say(self._refusal)

    def enforce(self, now_s: float) -> None:
        """Hold the client to the time limits; called about once a second."""
        waited_s = now_s - self.since_s
        if self.transport.is_closing():
            self._give_up_if_stuck(now_s)
        elif self in self.server_state.lingering:
            if waited_s >= LINGER_S:
                self.since_s = now_s
                self.transport.close()
        elif self.flow.read_paused:
            self.since_s = now_s  # we do not read, so its client is not at fault
        elif self._stage != _IDLE:
            if waited_s >= self._limits.upload_timeout_s:
                what = "head" if self._stage == _HEAD else "body"
                self.refuse(RequestTimeout(f"The {what} of the request did not arrive in time"))
        elif self.idle and waited_s >= self.server_state.keep_alive_s:
            self.transport.close()

    def close_after_answer(self) -> None:
        """Close with the answer under way, or with the answer to the next request."""
        self.closing_after_answer = True
        if self.cycle is not None and self._answering:
            self.cycle.keep_alive = False

    @property
    def idle(self) -> bool:
        """No request is under way on this connection, or on its way."""
        return self._stage == _IDLE and not self._answering

    # private

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _check_head(self) -> None:
        limits = self._limits
        if len(self.headers) > limits.max_headers:
            raise HeadersTooLarge(f"The request has more than {limits.max_headers} header lines")
        if self._unchecked_bytes > limits.max_header_bytes:
            # What was read is too large; that may be the body, or other requests.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.max_header_bytes:
                raise self._header_error()
        self._unchecked_bytes = 0
        if self.expect_100_continue and limits.max_body_bytes is not None:
            length = next((int(v) for k, v in self.headers if k == b"content-length"), 0)
            if length > limits.max_body_bytes:
                raise PayloadTooLarge(
                    f"The request body is larger than the limit of {limits.max_body_bytes} bytes "
                    "(`max_body_bytes`)"
                )

    def _header_error(self) -> ApiError:
        return HeadersTooLarge(
            f"The request's headers are larger than {self._limits.max_header_bytes} bytes"
        )

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
        cycle.scope[WRITE] = cycle.write
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _refuse_half_a_request(self, answer: bytes) -> None:
        """Refuse the request whose body is being read; it runs already, or waits for others."""
        half = self.cycle
        assert half is not None, "a body without a request"
        if self.pipeline and self.pipeline[0][0] is half:
            self.pipeline.popleft()  # `answer` is given when the others are through
        elif half.response_started:
            self.transport.abort()
        else:
            self._running = None
            self._say(answer)
            half.cut()

    def _say(self, answer: bytes) -> None:
        self.transport.write(answer)
        self._linger()

    def _end(self) -> None:
        if self._stage == _BODY:
            self._linger()  # its client is still writing
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close so that a client which still writes gets to see its answer, not a reset."""
        shared = self.server_state
        shared.connections.discard(self)
        if len(shared.lingering) >= MAX_LINGERING:
            self.transport.close()
            return
        shared.lingering.add(self)
        self._refusal = self._refusal or b""
        self.since_s = self.loop.time()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _give_up_if_stuck(self, now_s: float) -> None:
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self.since_s = now_s
        elif now_s - self.since_s >= STUCK_S:
            self.transport.abort()

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
