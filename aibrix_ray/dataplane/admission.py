"""Requests that wait: enacts what the models' admission queues decide.

Whoever waits is woken directly, one request a place. A stream that waits for long is begun with
SSE comments, so that no proxy on the way takes it for dead; its errors are events from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aibrix_ray.admission import Ticket
from aibrix_ray.asgi import Message, Send
from aibrix_ray.dataplane import wire
from aibrix_ray.dataplane.exchange import Exchange, Turn
from aibrix_ray.dataplane.metrics import GatewayMetrics
from aibrix_ray.errors import Overloaded
from aibrix_ray.pipeline import ModelState, Wait

_COMMENT = b": waiting\n\n"


class Admitter:
    """Lets requests wait and wakes them. One a gateway; all calls on its loop."""

    def __init__(self, metrics: GatewayMetrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        #: Models that requests wait for, also such that are not served any more.
        self._busy: set[ModelState] = set()

    async def hold(self, exchange: Exchange, wait: Wait, send: Send) -> None:
        """Return when the request may ask its life again: it has a place, or has waited in vain.

        Raises:
            Overloaded: too many requests wait, and others go before this one.
            ClientGone: the client left.
            DeadlineExceeded: the request's own deadline has passed.
        """
        life, model = exchange.life, exchange.life.model
        waiter = exchange.waiter = asyncio.get_running_loop().create_future()
        exchange.deadline_s = life.arrived_s + model.settings.timeout_s
        ticket = life.ticket(wait, waiter)
        began_s = self._clock()
        self._busy.add(model)
        try:
            refused = model.queue.wait(ticket, aside=wait.aside)
            if refused is not None:
                _tell(refused, Turn.REFUSED)
            self.admit(model)
            turn = await self._turn(exchange, waiter, send)
            exchange.check_interrupted()
            if turn is Turn.REFUSED:
                self._metrics.queue_refused(model.name)
                raise Overloaded(
                    f"all replicas of `{model.name}` are busy and {len(model.queue)} requests wait",
                    retry_after_s=model.settings.retry_after_s,
                )
        except BaseException:
            model.queue.leave(ticket)
            self.admit(model)
            raise
        finally:
            exchange.waiter = None
        if turn is Turn.ADMITTED:
            life.admit(ticket)
            self._metrics.waited(model.name, self._clock() - began_s)
        else:
            self._metrics.queue_expired(model.name)

    def admit(self, model: ModelState) -> None:
        """Wake as many of those who wait for a model as there are places."""
        if model.queue.line:
            for ticket in model.queue.admit(model.places(), self._clock()):
                _tell(ticket, Turn.ADMITTED)

    def admit_all(self) -> None:
        """Wake whoever has a place, of every model; the fleet has changed."""
        for model in self._busy:
            self.admit(model)

    def expire(self, now_s: float) -> None:
        """Wake those who have waited in vain."""
        for model in list(self._busy):
            for ticket in model.queue.expire(now_s):
                _tell(ticket, Turn.EXPIRED)
            self.admit(model)
            if not (len(model.queue) or model.queue.line):
                self._busy.discard(model)

    async def _turn(self, exchange: Exchange, waiter: asyncio.Future[Turn], send: Send) -> Turn:
        """Wait; a stream is told so every now and then."""
        request, settings = exchange.life.request, exchange.life.model.settings
        if not request.stream or request.path not in wire.STREAMED_PATHS:
            return await waiter
        while True:
            await asyncio.wait((waiter,), timeout=settings.keep_alive_s)
            if waiter.done():
                return waiter.result()
            if not exchange.started:
                exchange.started = True
                await send(_head(exchange.request_id))
            await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})


def _tell(ticket: Ticket, turn: Turn) -> None:
    waiter = ticket.holder
    assert isinstance(waiter, asyncio.Future), "whoever waits here is a future"
    if not waiter.done():
        waiter.set_result(turn)


def _head(request_id: bytes) -> Message:
    """Return the head of a stream that no replica has begun yet."""
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"x-request-id", request_id),
        (b"request-id", request_id),
    ]
    return {"type": "http.response.start", "status": 200, "headers": headers}
