"""The decoding sequences of one engine, kept so that a round costs nothing for most of them.

A round adds one token to every member. So none is touched: what a member holds follows from the
round in which it joined, and two indices say who needs a block, and who is done, in a given round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from heapq import heappop, heappush

from aibrix_ray.engine_model.request import EngineRequest, Phase

_Mark = tuple[int, int, EngineRequest]


class DecodeSet(Collection[EngineRequest]):
    """Members in the order in which they joined; `kv_tokens` is what they hold together."""

    __slots__ = ("_due", "_ends", "_members", "_serial", "block_size", "kv_tokens", "round")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.round = 0
        self.kv_tokens = 0
        self._members: dict[EngineRequest, None] = {}
        # By the rounds, modulo the block size, at which a member's blocks are full.
        self._due: list[dict[EngineRequest, None]] = [{} for _ in range(block_size)]
        # (round in which a member has made all its tokens, serial, member); a mark that its member
        # no longer carries is stale.
        self._ends: list[_Mark] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[EngineRequest]:
        return iter(self._members)

    def __contains__(self, request: object) -> bool:
        return request in self._members

    def add(self, request: EngineRequest) -> None:
        """Take in a sequence whose prompt is computed; it makes a token from the next round on."""
        request.phase = Phase.DECODE
        request.decoding_since = self.round
        self._members[request] = None
        self._due_of(request)[request] = None
        self.kv_tokens += request.computed_tokens
        self._serial += 1
        rounds = request.max_output_tokens - request.output_tokens
        mark = (self.round + rounds, self._serial, request)
        request.end_mark = mark
        heappush(self._ends, mark)

    def remove(self, request: EngineRequest) -> None:
        """Let a member go and write down what it has made."""
        del self._members[request]
        del self._due_of(request)[request]
        rounds = self.round - request.decoding_since
        request.computed_tokens += rounds
        request.output_tokens += rounds
        request.end_mark = None
        self.kv_tokens -= request.computed_tokens
        if not self._members:
            self._ends.clear()  # stale marks only, for rounds that may never come

    def due(self) -> list[EngineRequest]:
        """Return the members whose blocks are full: each needs one for its next token."""
        return list(self._due[self.round % self.block_size])

    def advance(self) -> None:
        """Pass one round: each member has made a token."""
        self.round += 1
        self.kv_tokens += len(self._members)

    def next_done(self) -> EngineRequest | None:
        """Return a member that has made all its tokens; the caller removes it."""
        while self._ends and self._ends[0][0] <= self.round:
            mark = heappop(self._ends)
            if mark[2].end_mark is mark:
                return mark[2]
        return None

    def rounds_until_done(self) -> int:
        """Return after how many rounds the first of the members has made all its tokens."""
        while self._ends[0][2].end_mark is not self._ends[0]:
            heappop(self._ends)
        return self._ends[0][0] - self.round

    def rounds_until_short(self, blocks: int) -> int:
        """Return how many rounds `blocks` more blocks last; those of this round are given."""
        cycles, blocks = divmod(blocks, len(self._members))
        rounds = 1 + cycles * self.block_size
        while (needed := len(self._due[(self.round + rounds) % self.block_size])) <= blocks:
            blocks -= needed
            rounds += 1
        return rounds

    def computed_tokens(self, request: EngineRequest) -> int:
        """Return the tokens that a member holds now."""
        return request.computed_tokens + self.round - request.decoding_since

    def check_integrity(self) -> None:
        """Assert that the indices and the sum agree with the members."""
        due = [request for bucket in self._due for request in bucket]
        assert len(due) == len(self._members), "a member is due at two rounds"
        assert set(due) == set(self._members), "a member is never due"
        marked = {mark[2] for mark in self._ends if mark[2].end_mark is mark}
        assert marked == set(self._members), "a member has no end"
        held = sum(self.computed_tokens(request) for request in self._members)
        assert held == self.kv_tokens, "the tokens held are miscounted"

    def _due_of(self, request: EngineRequest) -> dict[EngineRequest, None]:
        return self._due[(request.decoding_since - request.computed_tokens) % self.block_size]
