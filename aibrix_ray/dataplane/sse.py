"""Cuts the private comment lines out of an event stream, and keeps it whole events only.

A replica may die in the middle of an event. What a client has been given must then still be a
valid stream, so the tail of an incomplete event is held back until the rest is here; it is of no
use to a client before that. Anything else passes through byte for byte, at once.
"""

from __future__ import annotations

import re

from aibrix_ray.engines.meta import COMMENT_PREFIX, decode_usage
from aibrix_ray.types import Usage

_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_MARK = COMMENT_PREFIX.rstrip()
#: A comment stands at the beginning of a line, whatever ends this stream's lines.
_COMMENT = re.compile(rb"(?:\A|(?<=[\r\n]))%b([^\r\n]*)\n\n" % re.escape(COMMENT_PREFIX))
#: An "event" larger than this is not one; it is passed on as it comes.
_MAX_EVENT_BYTES = 8 * 1024 * 1024

#: Sent by every OpenAI-compatible stream at its end.
DONE = b"data: [DONE]\n\n"


class EventStream:
    """State of one stream on its way from the replica to the client."""

    __slots__ = ("_tail", "done", "usage")

    def __init__(self) -> None:
        self._tail = b""
        self.done = False
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the bytes that the client may have now; may be empty."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if not data.endswith(_ENDS):
            data = self._hold_tail(data)
        if _MARK in data:
            data = self._cut(data)
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

    def _cut(self, data: bytes) -> bytes:
        for found in _COMMENT.finditer(data):
            self.usage = decode_usage(found[1]) or self.usage
        return _COMMENT.sub(b"", data)
