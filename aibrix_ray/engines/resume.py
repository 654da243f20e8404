"""The token ids beside a stream, by which another replica goes on with it; the replica's half.

Knows no engine: an engine asks `meta.current_carry` whether somebody wants the ids of the request
that it serves, decides once whether this stream can be carried over, and tells the ids of each
event before it sends it. `meta.ReplicaApp` writes them between the events; the grammar is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_MOST_DIGITS = 10  # no vocabulary has more, and `int` refuses thousands of them


class Carry:
    """How one stream is carried over; one a request whose gateway asked for token ids.

    Attributes:
        before: the answer's token ids so far, after which to go on; `None` for a new stream.
        cached_tokens: what the first replica found in its cache; `None`: it did not say.
        permitted: the request's form does not stand in the way; decided before its parameters.
        carried: token ids are told, and the stream can be continued from them.
        refusal: why the stream cannot be continued; then no answer of the engine is used.
        replaying: the engine repeats what the client has; nothing of it is sent.
        broken: the engine died below this stream: it is cut, so that it goes on elsewhere.
        replay: what the engine made of `before`, for the engine itself.
    """

    __slots__ = (
        *("before", "broken", "cached_tokens", "carried", "permitted", "refusal", "replay"),
        *("replaying", "_head", "_opening", "_pending"),
    )

    def __init__(self, before: list[int] | None = None, cached_tokens: int | None = None) -> None:
        self.before = before
        self.cached_tokens = cached_tokens
        self.permitted = self.carried = self.broken = False
        self.refusal: str | None = None
        self.replaying = before is not None
        self.replay: Any = None
        self._pending: list[int] = []
        self._head: bytes | None = None
        self._opening = False

    @property
    def resumes(self) -> bool:
        """Another replica began this stream."""
        return self.before is not None

    def permit(self, *, opening: bool) -> None:
        """Say that a request of this form can be carried over.

        Args:
            opening: the stream's first event has no text (a chat's role), so it gets no ids.
        """
        self.permitted = True
        # Of a resumed stream the first event is repeated, with whatever else is.
        self._opening = opening and not self.resumes

    def decide(self, obstacle: str | None) -> bool:
        """Take the engine's verdict; `None`: nothing stands in the way.

        Returns:
            Whether to answer at all. If not, `refusal` is told instead of the answer.
        """
        self.carried = obstacle is None
        self.refusal = obstacle if self.resumes else None
        return self.refusal is None

    def refuses(self, status: int) -> bool:
        """Tell whether an answer that begins so must not go out, as it is no continuation."""
        if not self.resumes or self.carried:
            return False
        return self.refusal is not None or status == 200

    def begin(self, *, prompt_tokens: int, cached_tokens: int) -> None:
        """Tell the prompt's size, before the first ids; what comes after the first call is idle."""
        if self._head is None:
            self._head = b":=%d,%d\n" % (prompt_tokens, cached_tokens)

    def add(self, ids: Iterable[int]) -> None:
        """Tell the ids of the next event, before it is sent; new ones only."""
        self._pending += ids

    def lines(self, body: bytes) -> bytes:
        """Return what stands before a message of the stream."""
        if not body.startswith(b"data:"):
            return b""  # a comment of the engine's, or the end
        lines = self._take_head()
        if self._opening:
            self._opening = False
        elif self._pending:
            lines += b":+%b\n" % ",".join(map(str, self._pending)).encode()
            self._pending.clear()
        return lines

    def acknowledgement(self) -> bytes:
        """Return a resumed stream's first message: it is continued, and has this prompt."""
        head = self._take_head()
        return head + b":\n\n" if head else b""

    def cached_of(self, found: int | None, *, prompt_tokens: int) -> int:
        """Return the cached tokens of the whole request, of which `found` are this replica's.

        A resumed request's cached part may reach into the answer, which is no part of the prompt.
        """
        if self.cached_tokens is not None:
            return self.cached_tokens
        return min(found or 0, prompt_tokens)

    def _take_head(self) -> bytes:
        head = self._head
        if head is None:
            return b""
        self._head = b""
        return head


def parse_ids(value: bytes) -> list[int] | None:
    """Read `x-aibrix-resume`; `None` where it is not ids. No ids are fine: none were sent."""
    parts = value.split(b",") if value else []
    if not all(part.isdigit() and len(part) <= _MOST_DIGITS for part in parts):
        return None
    return [int(part) for part in parts]
