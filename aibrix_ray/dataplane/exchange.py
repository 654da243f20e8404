"""One request under way: what it is doing now, and how it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from aibrix_ray.dataplane.body import ClientGone
from aibrix_ray.dataplane.channel import Connection
from aibrix_ray.dataplane.fleet import Replica
from aibrix_ray.dataplane.sse import EventStream
from aibrix_ray.errors import DeadlineExceeded
from aibrix_ray.pipeline import Life
from aibrix_ray.types import Usage

#: The value of `sent_s` and `first_byte_s` before there is one.
PENDING = -1.0


class Turn(Enum):
    """How a wait in the admission queue ended."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"


class Exchange:
    """One request under way. `deadline_s` moves as it makes progress; a sweeper enforces it.

    Attributes:
        started: the client has been given the head of an answer.
        stream: the event stream that a replica has begun.
        write: sends a piece of a stream without a task (`asgi.WRITE`), where the server can.
        poured_s: when a piece last went by that the sweeper has not seen yet.
        moved: the attempt was given up from outside; the request goes elsewhere.
        waiter: resolved when the wait in the admission queue is over.
        rival: the same request at a second replica, while both are asked.
    """

    __slots__ = (
        "connection",
        "deadline_s",
        "expired",
        "first_byte_s",
        "gone",
        "life",
        "moved",
        "poured_s",
        "receive_task",
        "replica",
        "request_id",
        "rival",
        "sent_s",
        "started",
        "stream",
        "task",
        "usage",
        "waiter",
        "write",
    )

    def __init__(self, life: Life, request_id: bytes, task: asyncio.Task[None] | None) -> None:
        self.life = life
        self.request_id = request_id
        self.connection: Connection | None = None
        self.replica: Replica | None = None
        self.rival: Exchange | None = None
        self.task = task
        self.receive_task: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[Turn] | None = None
        self.deadline_s = life.arrived_s + life.model.settings.timeout_s
        self.sent_s = self.first_byte_s = self.poured_s = PENDING
        self.started = self.gone = self.expired = self.moved = False
        self.write: Callable[[bytes], bool] | None = None
        self.usage: Usage | None = None
        self.stream: EventStream | None = None

    def client_gone(self) -> None:
        """Note that the client has left: abort the generation in the engine."""
        self.gone = True
        self._interrupt("the client has gone")

    def expire(self) -> None:
        """Note that the deadline has passed; the second time, stop waiting for a slow client."""
        if self.expired and self.task is not None:
            self.task.cancel()
        self.expired = True
        self._interrupt("deadline passed")

    def move(self, reason: str) -> None:
        """Give the attempt under way up; the request goes on at another replica if it can."""
        if self.connection is not None:
            self.moved = True
            self.connection.abort(reason)

    def allow(self, seconds: float, now_s: float) -> None:
        """Move the deadline: `seconds` from now, but never beyond the request's own."""
        self.deadline_s = min(
            now_s + seconds, self.life.arrived_s + self.life.model.settings.timeout_s
        )

    def progress(self, now_s: float) -> None:
        """Note that a piece of the answer came: the replica works, and has time for the next."""
        self.allow(self.life.model.settings.idle_timeout_s, now_s)
        if self.replica is not None:
            self.replica.progress_s = now_s

    def check_interrupted(self) -> None:
        """Raise if the request has to end: its client has left, or its deadline has passed.

        Raises:
            ClientGone: the client left.
            DeadlineExceeded: one of the request's time limits is over.
        """
        if self.gone:
            raise ClientGone
        if self.expired:
            settings = self.life.model.settings
            raise DeadlineExceeded(
                "no answer in time (first byte "
                f"{settings.first_byte_timeout_s:g} s, between bytes {settings.idle_timeout_s:g} "
                f"s, whole request {settings.timeout_s:g} s)"
            )

    def _interrupt(self, reason: str) -> None:
        if self.connection is not None:
            self.connection.abort(reason)
        if self.rival is not None:
            self.rival.gone, self.rival.expired = self.gone, self.expired
            self.rival._interrupt(reason)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(Turn.INTERRUPTED)
