"""Carries one request: asks its `Life` what to do, moves the bytes, says what became of it.

Before the first byte of an answer has gone to the client, a replica that refuses, resets or dies
costs only an attempt: the request goes elsewhere. After it, a stream goes on at another replica
from the token ids that have come (decision 12); where that cannot be, it ends with an SSE error
frame and `[DONE]`, never with a fabricated finish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from aibrix_ray.asgi import ON_DISCONNECT, TASK, WRITE, Receive, Scope, Send
from aibrix_ray.dataplane import wire
from aibrix_ray.dataplane.admission import Admitter
from aibrix_ray.dataplane.body import Body, ClientGone
from aibrix_ray.dataplane.channel import ChannelError, Connection
from aibrix_ray.dataplane.exchange import PENDING, Exchange
from aibrix_ray.dataplane.fleet import Fleet, Replica
from aibrix_ray.dataplane.hedging import cancel, first_answer
from aibrix_ray.dataplane.metrics import GatewayMetrics
from aibrix_ray.dataplane.pour import Pour
from aibrix_ray.dataplane.sse import DONE, EventStream
from aibrix_ray.dataplane.stuck import leave_stuck
from aibrix_ray.engines.meta import META_HEADER, RETRY_HEADER, decode_usage
from aibrix_ray.errors import ApiError, DeadlineExceeded, ReplicaFailed
from aibrix_ray.pipeline import Life, Wait
from aibrix_ray.types import Ending

#: An error that a replica answers to a stream is passed on up to here.
_MAX_ERROR_BYTES = 1024 * 1024


class Forwarder:
    """Forwards requests to replicas. One a gateway."""

    def __init__(
        self,
        fleet: Fleet,
        metrics: GatewayMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._clock = clock
        self._admitter = Admitter(metrics, clock)
        self.under_way: set[Exchange] = set()
        fleet.on_change = self._admitter.admit_all

    async def sweep(self, period_s: float = 0.25) -> None:
        """Enforce deadlines for ever; one timer for all requests instead of one each.

        It also finds out which replicas are stuck, since those give no occasion of their own.
        """
        while True:
            await asyncio.sleep(period_s)
            now_s = self._clock()
            for exchange in list(self.under_way):
                if exchange.poured_s != PENDING:
                    exchange.progress(exchange.poured_s)
                    exchange.poured_s = PENDING
                if now_s >= exchange.deadline_s:
                    exchange.expire()
            if self._fleet.judge(now_s):
                leave_stuck(self.under_way, now_s)
            self._admitter.expire(now_s)

    async def forward(
        self, life: Life, scope: Scope, receive: Receive, send: Send, body: Body
    ) -> int:
        """Carry one request to its end; return the status that the client was given.

        Raises:
            ApiError: nothing has been sent to the client yet; the caller answers.
            ClientGone: the client left.
        """
        task = scope[TASK] if TASK in scope else asyncio.current_task()
        exchange = Exchange(life, scope["aibrix.request_id"], task)
        exchange.write = scope.get(WRITE)
        if ON_DISCONNECT in scope:
            scope[ON_DISCONNECT] = exchange.client_gone
        else:
            exchange.receive_task = asyncio.create_task(_watch(receive, exchange))
        self.under_way.add(exchange)
        try:
            while True:
                try:
                    status = await self._attempt(exchange, scope, send, body)
                except ApiError as error:
                    if not exchange.started:
                        raise
                    if exchange.stream is not None:
                        life.usage = exchange.stream.spent()
                    await self._end_stream(exchange, error, send)
                    raise BrokenAnswer(error) from error
                if status:
                    return status
        except asyncio.CancelledError:
            if exchange.expired and exchange.started:
                # A client that does not read: there is nobody to tell, its connection is cut.
                raise BrokenAnswer(DeadlineExceeded("the client does not read")) from None
            exchange.check_interrupted()
            raise
        finally:
            self.under_way.discard(exchange)
            exchange.write = None  # a circle would wait for the collector
            if exchange.receive_task is not None:
                exchange.receive_task.cancel()

    async def _attempt(self, exchange: Exchange, scope: Scope, send: Send, body: Body) -> int:
        """Try one replica; return the status once the client has been answered, else 0."""
        life = exchange.life
        now_s = self._clock()
        if exchange.gone:
            raise ClientGone
        chosen = life.next(now_s)
        if isinstance(chosen, Wait):
            await self._admitter.hold(exchange, chosen, send)
            return 0
        assert isinstance(chosen, Replica), "the fleet's members are replicas with a channel"
        settings = life.model.settings
        exchange.allow(settings.first_byte_timeout_s, now_s)
        exchange.replica, exchange.moved = chosen, False
        exchange.sent_s, exchange.first_byte_s = now_s, PENDING
        chosen.in_flight += 1
        ending, status = Ending.FAILED, 0
        try:
            if settings.hedge_after_s is None or exchange.started:
                connection = await self._ask(exchange, chosen, scope, body)
            else:
                connection = await self._race(exchange, scope, body, after_s=settings.hedge_after_s)
            if connection is None:
                ending = Ending.REJECTED if chosen.draining else Ending.FAILED
                return 0
            status = connection.status
            if not await self._answer(exchange, exchange.replica, connection, send):
                return 0
            ending = Ending.COMPLETED if status < 400 else Ending.CLIENT_ERROR
            if status >= 500:
                ending = Ending.FAILED
            return status
        except (ClientGone, asyncio.CancelledError):
            ending = Ending.CANCELLED
            raise
        finally:
            self._end_attempt(exchange, ending, status)

    async def _race(
        self, exchange: Exchange, scope: Scope, body: Body, *, after_s: float
    ) -> Connection | None:
        """Ask a second replica too if the first one is slow; go on with who answers first."""
        life, first = exchange.life, exchange.replica
        assert first is not None, "the first replica is asked before the second"
        asked = asyncio.create_task(self._ask(exchange, first, scope, body))
        try:
            await asyncio.wait((asked,), timeout=after_s)
            second = None if asked.done() else life.hedge(first, self._clock())
            if second is None:
                return await asked
        except BaseException:
            await cancel(asked)
            raise
        assert isinstance(second, Replica), "the fleet's members are replicas with a channel"
        self._metrics.hedged(life.model.name)
        rival = exchange.rival = Exchange(life, exchange.request_id, exchange.task)
        rival.replica, rival.sent_s = second, self._clock()
        second.in_flight += 1
        ending = Ending.CANCELLED
        try:
            asked_too = asyncio.create_task(self._ask(rival, second, scope, body))
            connection, failed = await first_answer(exchange, rival, asked, asked_too)
            if failed:
                ending = Ending.FAILED
            return connection
        finally:
            exchange.rival = None
            self._end_attempt(rival, ending, 0)

    async def _ask(
        self, exchange: Exchange, replica: Replica, scope: Scope, body: Body
    ) -> Connection | None:
        """Send the request and wait for the answer's head; `None`: try another replica."""
        head = wire.request_head(
            scope["path"],
            scope["query_string"],
            scope["headers"],
            length=len(body),
            request_id=exchange.request_id,
            token=replica.endpoint.address.token,
            extra=_token_headers(exchange, scope["path"]),
        )
        fresh = False
        while True:
            connection = None
            try:
                connection = await replica.endpoint.acquire(fresh=fresh)
                exchange.connection = connection
                if exchange.gone:
                    raise ClientGone
                await connection.ask(head, body)
                break
            except ChannelError as error:
                exchange.check_interrupted()
                if not (error.fresh or fresh or exchange.moved):
                    # A keep-alive connection that the replica had closed: says nothing about it.
                    fresh = True
                    continue
                exchange.life.failed(replica, str(error))
                if connection is None:
                    self._fleet.mark_down(replica)
                self._metrics.retried(exchange.life.model.name)
                return None
        if connection.status == 503 and any(k == RETRY_HEADER for k, _ in connection.headers):
            exchange.life.refused(replica)
            self._fleet.mark_draining(replica)
            return None
        return connection

    async def _answer(
        self, exchange: Exchange, replica: Replica, connection: Connection, send: Send
    ) -> bool:
        """Pass the answer on, whole or as it comes; tell whether that was all of it."""
        if exchange.stream is not None:
            return await self._continue(exchange, exchange.stream, replica, connection, send)
        first = await self._read(exchange, connection)
        exchange.first_byte_s = self._clock()
        if exchange.started:
            return await self._answer_held(exchange, replica, connection, send, first)
        for name, value in connection.headers:
            if name == META_HEADER:
                exchange.usage = decode_usage(value)
        headers = wire.response_headers(
            connection.headers,
            [
                (b"x-request-id", exchange.request_id),
                (b"request-id", exchange.request_id),
                replica.header,
                *exchange.life.answer_headers,
            ],
        )
        if connection.streaming:
            # We may cut a comment out, or have to add an error frame.
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        exchange.started = True
        await send({"type": "http.response.start", "status": connection.status, "headers": headers})
        if connection.streaming:
            exchange.stream = EventStream()
            return await self._stream(exchange, exchange.stream, replica, connection, send, first)
        if connection.complete:
            await send({"type": "http.response.body", "body": first})
        else:
            await self._pass_on(exchange, connection, send, first)
        return True

    async def _answer_held(
        self,
        exchange: Exchange,
        replica: Replica,
        connection: Connection,
        send: Send,
        data: bytes,
    ) -> bool:
        """Answer a stream whose head went out while it waited; anything else becomes its error."""
        if connection.status == 200 and connection.streaming:
            exchange.stream = EventStream()
            return await self._stream(exchange, exchange.stream, replica, connection, send, data)
        whole = data
        while data and len(whole) < _MAX_ERROR_BYTES:
            data = await self._read(exchange, connection)
            whole += data
        frame = b"data: " + b" ".join(whole.splitlines()) + b"\n\n" + DONE
        await send({"type": "http.response.body", "body": frame})
        return True

    async def _continue(
        self,
        exchange: Exchange,
        stream: EventStream,
        replica: Replica,
        connection: Connection,
        send: Send,
    ) -> bool:
        """Go on with a stream that another replica has begun."""
        if connection.status != 200 or not connection.streaming:
            reason = f"it answered {connection.status} when asked to continue a stream"
            if connection.status < 500:
                raise ReplicaFailed(f"the replica failed and no other can go on: {reason}")
            exchange.life.failed(replica, reason)
            return False
        stream.resume()
        self._metrics.resumed(exchange.life.model.name)
        first = await self._read(exchange, connection)
        exchange.first_byte_s = self._clock()
        return await self._stream(exchange, stream, replica, connection, send, first)

    async def _stream(
        self,
        exchange: Exchange,
        stream: EventStream,
        replica: Replica,
        connection: Connection,
        send: Send,
        data: bytes,
    ) -> bool:
        """Pass events on as they come; False: the replica failed, and another can go on."""
        told, pour = stream.told, Pour(exchange, stream, self._clock)
        try:
            while data:
                ready = stream.feed(data)
                if connection.complete and not connection.pending:
                    ready += stream.flush()
                    await send({"type": "http.response.body", "body": ready})
                    return True
                if ready:
                    await send({"type": "http.response.body", "body": ready, "more_body": True})
                exchange.progress(self._clock())
                if exchange.write is not None:
                    await connection.pour(pour)
                    ready, pour.left = pour.left, b""
                    if ready:
                        await send({"type": "http.response.body", "body": ready, "more_body": True})
                data = await self._read(exchange, connection)
        except ReplicaFailed as error:
            if stream.done:
                # The client has it all; only the replica's end of the answer is missing.
                await send({"type": "http.response.body", "body": b""})
                return True
            if not (stream.carried and exchange.life.model.settings.resume):
                raise
            lost = exchange.life.broke if stream.told > told else exchange.life.failed
            lost(replica, str(error))
            return False
        await send({"type": "http.response.body", "body": stream.flush()})
        return True

    async def _end_stream(self, exchange: Exchange, error: ApiError, send: Send) -> None:
        """Tell the client of a stream that it broke."""
        self._metrics.broken(exchange.life.model.name)
        frame = b"data: " + error_body(error) + b"\n\n" + DONE
        await send({"type": "http.response.body", "body": frame})

    async def _pass_on(
        self, exchange: Exchange, connection: Connection, send: Send, data: bytes
    ) -> None:
        """Pass a large plain answer on as it comes; if it breaks, so does the client's."""
        idle_s = exchange.life.model.settings.idle_timeout_s
        while data:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            exchange.allow(idle_s, self._clock())
            try:
                data = await self._read(exchange, connection)
            except ApiError as error:
                raise BrokenAnswer(error) from error
        await send({"type": "http.response.body", "body": b""})

    async def _read(self, exchange: Exchange, connection: Connection) -> bytes:
        try:
            return await connection.read()
        except ChannelError as error:
            exchange.check_interrupted()
            raise ReplicaFailed(f"the replica failed during its answer: {error}") from error

    def _end_attempt(self, exchange: Exchange, ending: Ending, status: int) -> None:
        """Free the place at the replica, account for it, and give the place to who waits."""
        replica, model = exchange.replica, exchange.life.model
        assert replica is not None, "an attempt has a replica"
        replica.in_flight -= 1
        if exchange.connection is not None:
            exchange.connection.release()
            exchange.connection = None
        self._account(exchange, replica, ending, status)
        if model.queue.line:
            self._admitter.admit(model)

    def _account(self, exchange: Exchange, replica: Replica, ending: Ending, status: int) -> None:
        now_s = self._clock()
        first_s = exchange.first_byte_s
        ttft_s = None if first_s == PENDING else first_s - exchange.sent_s
        e2e_s = now_s - exchange.sent_s
        streamed = exchange.stream is not None
        if exchange.stream is not None and ending is not Ending.FAILED:
            exchange.usage = exchange.stream.spent()
        exchange.life.ended(
            replica,
            ending,
            now_s=now_s,
            status=status,
            ttft_s=ttft_s,
            e2e_s=e2e_s,
            usage=exchange.usage,
        )
        self._metrics.attempt_ended(
            exchange.life.model.name, ttft_s, e2e_s, exchange.usage, streamed=streamed
        )


class BrokenAnswer(Exception):
    """The answer broke after its head had been sent; the client has been told as well as it can."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(str(error))
        self.error = error


def _token_headers(exchange: Exchange, path: str) -> bytes:
    """Return the private header lines by which a stream can be continued elsewhere."""
    if exchange.stream is not None:
        return b"x-aibrix-tokens: 1\r\n" + exchange.stream.resume_headers()
    life = exchange.life
    if life.request.stream and life.model.settings.resume and path in wire.CARRIED_PATHS:
        return b"x-aibrix-tokens: 1\r\n"
    return b""


def error_body(error: ApiError) -> bytes:
    """Return the error as OpenAI's JSON."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


async def _watch(receive: Receive, exchange: Exchange) -> None:
    """Wait for the disconnect where the server has no hook for it (`gateway.listen: serve`)."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            exchange.client_gone()
            return
