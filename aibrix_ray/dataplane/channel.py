"""Byte channel to a replica: a pool of raw connections that parse nothing but HTTP framing.

One `Endpoint` a replica. A connection carries one request at a time; its answer is read as
whatever has arrived (coalesced under load, without delay when paced). Knows no policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import httptools

from aibrix_ray.asgi import Headers
from aibrix_ray.dataplane.body import Body

#: A slow client must not make the gateway hold a whole answer: reading pauses above this.
HIGH_WATER_BYTES = 256 * 1024
MAX_IDLE_CONNECTIONS = 256
_MOST_FRAMED = 4096


def _size_lines() -> list[bytes]:
    """Return, by the length of a whole chunk, the line that it begins with; `b""`: none fits."""
    lines = [b""] * _MOST_FRAMED
    for size in range(1, _MOST_FRAMED):
        line = b"%x\r\n" % size
        length = len(line) + size + 2
        if length < _MOST_FRAMED:
            lines[length] = line
    return lines


_SIZE_LINES = _size_lines()


class ChannelError(Exception):
    """The connection broke. `fresh` tells a replica's fault from a stale keep-alive connection."""

    def __init__(self, reason: str, *, fresh: bool) -> None:
        super().__init__(reason)
        self.fresh = fresh


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica listens: a Unix socket on this node, or a host and port."""

    uds: str | None = None
    host: str = ""
    port: int = 0
    token: str = ""

    def __str__(self) -> str:
        return self.uds or f"{self.host}:{self.port}"


class Connection(asyncio.Protocol):
    """One raw connection to a replica.

    `exchange` sends a request; then `head` waits for the answer's head and `read` for its bytes.
    """

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoint = endpoint
        self._loop = loop  # kept: asking for the running loop asks the kernel for the pid
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._closed: str | None = None
        self._answers = 0
        self._busy = False
        self._flowing = False
        self._chunk_ended = self._between_chunks = False
        self._surplus = False
        self._writable = asyncio.Event()
        self._writable.set()
        self.status = 0
        self.headers: Headers = []
        self.streaming = False
        self.head_complete = False
        self.complete = False
        self.keep_alive = False

    # What the gateway calls

    @property
    def usable(self) -> bool:
        """An idle connection that may carry the next request."""
        return self._closed is None

    @property
    def pending(self) -> bool:
        """Bytes have arrived that were not read yet."""
        return bool(self._chunks)

    async def ask(self, request: bytes, body: Body) -> None:
        """Send a request and wait for its answer's `head`.

        Raises:
            ChannelError: the connection broke before that.
        """
        if isinstance(body, bytes):
            self.exchange(request, body)
        else:
            await self.exchange_chunks(request, body.chunks())
        await self.head()

    def exchange(self, request: bytes, body: bytes) -> None:
        """Send a request and forget the answer before it.

        Raises:
            ChannelError: the connection is not open any more.
        """
        self._begin()
        if len(body) < 65536:
            self._out.write(request + body)
        else:
            self._out.write(request)
            self._out.write(body)

    async def exchange_chunks(self, request: bytes, chunks: Iterator[bytes]) -> None:
        """Send a request whose body comes from a file, no faster than the replica reads."""
        self._begin()
        self._out.write(request)
        for chunk in chunks:
            self._out.write(chunk)
            await self._writable.wait()
            self._check_open()

    async def head(self) -> None:
        """Wait until the head is here and, of a plain answer, all of it or a bufferful.

        Of an event stream, wait for its first bytes: until then another replica could still
        answer.

        Raises:
            ChannelError: the connection broke before that.
        """
        while not (self.complete or (self.head_complete and self._enough())):
            if self._closed is not None:
                raise ChannelError(self._closed, fresh=self._answers == 0)
            await self._wait()

    async def read(self) -> bytes:
        """Return what has arrived, waiting for at least one byte; `b""` at the answer's end.

        Raises:
            ChannelError: the connection broke before the answer's end.
        """
        self._flowing = True
        while not self._chunks:
            if self.complete:
                return b""
            if self._closed is not None:
                raise ChannelError(self._closed, fresh=True)
            await self._wait()
        data = self._take()
        if self._paused:
            self._paused = False
            if self._closed is None:
                self._out.resume_reading()
        return data

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Give what arrives to `sink`, at once and without a task, for as long as it takes it.

        Returns when `sink` has said no, and when the answer is at its end or has broken: `read`
        tells which, and has what came last.
        """
        if self._chunks or self.complete or self._closed is not None:
            return
        self._sink = sink
        try:
            await self._wait()
        finally:
            self._sink = None

    def release(self) -> None:
        """Give the connection back after a complete answer; close it otherwise."""
        if self.complete and self.keep_alive and self._closed is None:
            self._answers += 1
            self._busy = False
            self._endpoint.give_back(self)
        else:
            self.abort("released before its answer was complete")

    def abort(self, reason: str) -> None:
        """Close at once; the replica's listener sees a disconnect and aborts the generation."""
        if self._closed is None:
            self._closed = reason
            if self._transport is not None:
                self._transport.abort()
            self._writable.set()
            self._wake()

    # asyncio.Protocol

    def pause_writing(self) -> None:
        """The replica reads slower than we send."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The replica has caught up."""
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio and uvloop set TCP_NODELAY on it)."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Feed the framing parser and wake the reader if that changed anything for it."""
        sink = self._sink
        if sink is not None and self._between_chunks:
            # One event in one chunk, as engines send them: the parser would be the same after it.
            size = len(data)
            if size < _MOST_FRAMED and (line := _SIZE_LINES[size]) and data.startswith(line):
                if not sink(data[len(line) : -2]):
                    self._sink = None
                    self._wake()
                return
        if not self._busy:
            self.abort("the replica sent bytes that belong to no request")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort(f"the replica's answer is not HTTP: {error}")
            return
        # What ends so and has begun no other chunk, ends one.
        self._between_chunks = self._chunk_ended and data.endswith(b"\r\n")
        if sink is not None and not self.complete:
            if self._chunks and not sink(self._take()):
                self._sink = None
                self._wake()
            return
        if self._buffered > HIGH_WATER_BYTES and not self._paused and not self.complete:
            self._paused = True
            self._out.pause_reading()
        waiter = self._waiter
        if waiter is not None and (self.complete or (self.head_complete and self._enough())):
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the reader; an idle connection leaves the pool."""
        if self._closed is None:
            self._closed = f"connection lost: {exc}" if exc else "connection closed by the replica"
            if exc is None and self.head_complete and self._ends_with_connection():
                self.complete = True
        self._endpoint.forget(self)
        self._writable.set()
        self._wake()

    # httptools callbacks

    def on_message_begin(self) -> None:
        """Note a second answer to one request: the connection cannot be used again."""
        if self.complete:
            self.keep_alive = False
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header of the answer."""
        if self._surplus:
            return
        name = name.lower()
        self.headers.append((name, value))
        if name == b"content-type" and value.startswith(b"text/event-stream"):
            self.streaming = True

    def on_headers_complete(self) -> None:
        """Note the status; an interim answer (1xx) is dropped."""
        status = self._parser.get_status_code()
        if self._surplus:
            return
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        self.keep_alive = self._parser.should_keep_alive()
        self.head_complete = True

    def on_body(self, data: bytes) -> None:
        """Keep body bytes for the reader."""
        if self._surplus:
            return
        self._chunks.append(data)
        self._buffered += len(data)

    def on_chunk_header(self) -> None:
        """Note that a chunk has begun."""
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        """Note that a chunk has ended."""
        self._chunk_ended = True

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self.head_complete:
            self.complete = True

    # private

    def _check_open(self) -> None:
        # A transport that was aborted refuses to be written to with an error of its own.
        if self._closed is not None:
            raise ChannelError(self._closed, fresh=self._answers == 0)

    @property
    def _out(self) -> asyncio.Transport:
        assert self._transport is not None, "used before it was connected"
        return self._transport

    def _begin(self) -> None:
        self._check_open()
        self._busy = True
        self._flowing = self._surplus = False
        self._chunk_ended = self._between_chunks = False
        self.status = 0
        self.headers = []
        self.streaming = self.head_complete = self.complete = False
        self._chunks.clear()
        self._buffered = 0

    def _enough(self) -> bool:
        # A plain answer is awaited whole, since it can then still be retried elsewhere, unless it
        # is larger than the buffer; once it is being passed on, whatever comes is wanted.
        if self.streaming or self._flowing:
            return bool(self._chunks)
        return self._buffered > HIGH_WATER_BYTES

    def _ends_with_connection(self) -> bool:
        names = {name for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        return data

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Endpoint:
    """The pool of connections to one replica."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._idle: list[Connection] = []
        self._closed = False

    async def acquire(self, *, fresh: bool = False) -> Connection:
        """Return a connection that carries nothing; `fresh` forces a new one.

        Raises:
            ChannelError: the replica refuses connections.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return await self._connect()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if self._closed or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            connection.abort("not needed any more")
        else:
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that was lost while it was idle."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close idle connections; those in use end with their answers."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort("the replica has gone")

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        address = self.address
        try:
            if address.uds is not None:
                _, connection = await loop.create_unix_connection(
                    lambda: Connection(self, loop), address.uds
                )
            else:
                _, connection = await asyncio.wait_for(
                    loop.create_connection(
                        lambda: Connection(self, loop), address.host, address.port
                    ),
                    timeout=5.0,
                )
        except (TimeoutError, OSError) as error:
            raise ChannelError(f"cannot connect to {address}: {error}", fresh=True) from error
        return connection
