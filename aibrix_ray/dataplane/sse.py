"""Cuts the private comment lines out of an event stream, and keeps it whole events only.

A replica may die in the middle of an event. What a client has been given must then still be a
valid stream, so the tail of an incomplete event is held back until the rest is here; it is of no
use to a client before that. Anything else passes through byte for byte, at once.

What is cut out says from where another replica can go on (`engines/meta.py` has the grammar).
"""

from __future__ import annotations

import re

from aibrix_ray.engines.meta import COMMENT_PREFIX, decode_usage
from aibrix_ray.types import Usage

_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_MARK = COMMENT_PREFIX.rstrip()
#: A comment stands at the beginning of a line, whatever ends this stream's lines.
_COMMENT = re.compile(rb"(?:\A|(?<=[\r\n]))%b([^\r\n]*)\n\n" % re.escape(COMMENT_PREFIX))
#: The lines that tell tokens. No text looks like them, because JSON has no raw line ends.
_TOLD = re.compile(rb"(?:\A|(?<=\n)):([+=])([0-9,]+)\n")
_CREATED = re.compile(rb'"created":\d+')
#: An "event" larger than this is not one; it is passed on as it comes.
_MAX_EVENT_BYTES = 8 * 1024 * 1024

#: Sent by every OpenAI-compatible stream at its end.
DONE = b"data: [DONE]\n\n"


class EventStream:
    """State of one stream on its way from the replica, or one after the other, to the client."""

    __slots__ = ("_created", "_ids", "_prompt", "_resumed", "_steady", "_tail", "done", "usage")

    def __init__(self) -> None:
        self._tail = b""
        self._prompt: bytes | None = None
        self._ids: list[bytes] = []
        self._created = b""
        self._resumed = False
        self._steady = False  # as it will go on: it began, nothing of it is rewritten
        self.done = False
        self.usage: Usage | None = None

    @property
    def carried(self) -> bool:
        """Another replica can go on with this stream."""
        return self._prompt is not None and not self.done

    @property
    def told(self) -> int:
        """How many times tokens were told; it grows as the stream makes progress."""
        return len(self._ids)

    def resume_headers(self) -> bytes:
        """Return the header lines of the request that continues this stream."""
        assert self._prompt is not None, "a stream that is not carried"
        cached = self._prompt.partition(b",")[2]
        ids = b",".join(self._ids)
        return b"x-aibrix-resume: %b\r\nx-aibrix-cached: %b\r\n" % (ids, cached)

    def resume(self) -> None:
        """Go on with the answer of another replica; half an event of the old one is dropped."""
        self._tail = b""
        self._resumed, self._steady = True, False

    def spent(self) -> Usage | None:
        """Return the usage: what the replica said at the end, else what was told until it broke."""
        if self.usage is not None or self._prompt is None:
            return self.usage
        prompt, _, cached = self._prompt.partition(b",")
        completion = sum(ids.count(b",") + 1 for ids in self._ids)
        return Usage(int(prompt), int(cached), completion)

    def feed(self, data: bytes) -> bytes:
        """Return the bytes that the client may have now; may be empty."""
        if self._steady and not self._tail:
            # What nearly all pieces of an engine are: one event, maybe with its tokens' ids.
            begin = data.find(b"\n") + 1 if data[:2] == b":+" else 0
            event = data[begin:] if begin else data
            if (
                event[:5] == b"data:"
                and event[-2:] == b"\n\n"
                and b"\n:" not in event
                and event[-8:] != b"[DONE]\n\n"
            ):
                if begin:
                    self._ids.append(data[2 : begin - 1])
                return event
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if not data.endswith(_ENDS):
            data = self._hold_tail(data)
        if data[:1] == b":":
            data = self._take_tokens(data)
        elif self._prompt is not None and b"\n\n:" in data:
            data = self._take_all_tokens(data)
        if _MARK in data:
            data = self._cut(data)
        if self._resumed:
            data = _CREATED.sub(self._created, data) if self._created else data
        elif not self._created:
            found = _CREATED.search(data)
            self._created = found[0] if found else b""
            self._steady = found is not None
        if data.endswith(DONE):
            self.done = True
        return data

    def flush(self) -> bytes:
        """Return what is held back, at the regular end of the answer."""
        tail, self._tail = self._tail, b""
        return tail

    def _hold_tail(self, data: bytes) -> bytes:
        if len(data) > _MAX_EVENT_BYTES:
            return data
        cut = max((data.rfind(end) + len(end) for end in _ENDS if end in data), default=0)
        self._tail = data[cut:]
        return data[:cut]

    def _take_tokens(self, data: bytes) -> bytes:
        """Take the lines at the beginning; of an engine that sends one token at a time, all."""
        while data[:2] in (b":+", b":="):
            end = data.find(b"\n")
            self._take(data[1:2], data[2:end])
            data = data[end + 1 :]
            if data[:3] == b":\n\n":  # a continuation begins
                data = data[3:]
        return self._take_all_tokens(data) if b"\n\n:" in data else data

    def _take_all_tokens(self, data: bytes) -> bytes:
        for found in _TOLD.finditer(data):
            self._take(found[1], found[2])
        return _TOLD.sub(b"", data)

    def _take(self, kind: bytes, told: bytes) -> None:
        if kind == b"+":
            self._ids.append(told)
        elif self._prompt is None:
            self._prompt = told

    def _cut(self, data: bytes) -> bytes:
        for found in _COMMENT.finditer(data):
            self.usage = decode_usage(found[1]) or self.usage
        return _COMMENT.sub(b"", data)
