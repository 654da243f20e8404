"""The sequences of one HTTP request while they are generated: their text, and who waits for it.

The stepping task calls `advance`, the request's own task takes what has come since it last looked.
Between them is no queue: a slow client finds more in one `Delta`, and what it may find is bounded
by the model's context length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aibrix_ray.engine_model import EngineRequest, block_hashes, chain_hash
from aibrix_ray.engines import simulated_tokens as tokens
from aibrix_ray.errors import ApiError
from aibrix_ray.types import Usage


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of a request are chosen, and when they end."""

    seed: str = ""
    ignore_eos: bool = False
    min_tokens: int = 0
    stops: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is to be generated: `choices` sequences for each of `prompts`.

    `seeds` has one entry a choice; an entry is part of what the tokens are a function of. Each
    prompt is (token ids, the most tokens to make); no tokens are made where that is 0, but the
    prompt is computed. `whole`: the caller waits for the end only. `before`: what another engine
    has made of the only sequence, which this one goes on with.
    """

    prompts: Sequence[tuple[list[int], int]]
    seeds: Sequence[str] = ("",)
    sampling: Sampling = Sampling()
    cache_salt: str = ""
    whole: bool = False
    before: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What a sequence has made since it was last looked at.

    `bits` go with `token_ids`, for logprobs. `finish_reason` is set in the last one only.
    """

    text: str
    token_ids: list[int]
    bits: list[int]
    finish_reason: str | None
    stop_reason: str | int | None


class TextSequence(EngineRequest):
    """One sequence with its words: an `EngineRequest` that knows what its tokens are.

    Tokens that another engine made (`before`) are computed as a part of the prompt, and count as
    made. They may be the whole answer; then it has a `finish_reason` from the beginning.
    """

    __slots__ = (
        "_bits",
        "_block",
        "_block_size",
        "_held_back",
        "_max_tokens",
        "_parent",
        "_sampling",
        "_sent_chars",
        "_sent_tokens",
        "_source",
        "choice",
        "finish_reason",
        "generation",
        "prompt",
        "stop_reason",
        "text",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt: list[int],
        *,
        choice: int,
        generation: Generation,
        source: tokens.TokenSource,
        sampling: Sampling,
        max_tokens: int,
        block_size: int,
        root: int,
        before: Sequence[int] = (),
    ) -> None:
        computed = [*prompt, *before]
        hashes = block_hashes(root, computed, block_size=block_size)
        super().__init__(
            request_id,
            prompt_tokens=len(computed),
            max_output_tokens=max_tokens - len(before),
            block_hashes=hashes,
        )
        self.generation = generation
        self.prompt = prompt
        #: Its index among the choices of the answer.
        self.choice = choice
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self._source = source
        self._sampling = sampling
        self._bits: list[int] = []
        self._block_size = block_size
        self._parent = hashes[-1] if hashes else root
        # The tokens of the last block, which is not full yet.
        self._block = computed[len(computed) - len(computed) % block_size :]
        self._max_tokens = max_tokens
        self._sent_chars = self._sent_tokens = 0
        # A stop string may begin in these last characters, so they are not shown yet.
        self._held_back = max((len(stop) for stop in sampling.stops), default=1) - 1
        for token in before:
            if self._append(token, bits=0):
                break

    def advance(self) -> bool:
        """Make one token; true if the answer ends with it."""
        sampling = self._sampling
        may_end = not sampling.ignore_eos and len(self.token_ids) >= sampling.min_tokens
        token = self._source.next(may_end=may_end)
        self._extend_block(token)
        return self._append(token, bits=self._source.bits)

    def take(self) -> Delta | None:
        """Return what has not been taken yet and may be shown; `None` if that is nothing."""
        end = len(self.text)
        if self.finish_reason is None:
            end = max(self._sent_chars, end - self._held_back)
            if end == self._sent_chars:
                return None
        elif self._sent_tokens == len(self.token_ids):
            return None
        return self._taken(end)

    def take_before(self) -> Delta:
        """Return what another engine made, as far as it was shown there; empty or not."""
        end = len(self.text)
        return self._taken(end if self.finish_reason else max(0, end - self._held_back))

    def _taken(self, end: int) -> Delta:
        delta = Delta(
            text=self.text[self._sent_chars : end],
            token_ids=self.token_ids[self._sent_tokens :],
            bits=self._bits[self._sent_tokens :],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
        self._sent_chars, self._sent_tokens = end, len(self.token_ids)
        return delta

    def _append(self, token: int, *, bits: int) -> bool:
        sampling = self._sampling
        made = len(self.token_ids)
        self.token_ids.append(token)
        self._bits.append(bits)
        self.text += tokens.word(token)
        if token == tokens.END:
            self.finish_reason = "stop"
        elif token in sampling.stop_token_ids and made >= sampling.min_tokens:
            self.finish_reason, self.stop_reason = "stop", token
        elif sampling.stops and made >= sampling.min_tokens and self._cut_at_stop(token):
            self.finish_reason = "stop"
        elif made + 1 == self._max_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def _extend_block(self, token: int) -> None:
        self._block.append(token)
        if len(self._block) == self._block_size:
            self._parent = chain_hash(self._parent, self._block)
            self.block_hashes.append(self._parent)
            self._block = []

    def _cut_at_stop(self, token: int) -> bool:
        """Cut the text before the first stop string, if one has come with this token."""
        start = max(0, len(self.text) - len(tokens.word(token)) - self._held_back)
        found = [(self.text.find(stop, start), stop) for stop in self._sampling.stops]
        hits = [hit for hit in found if hit[0] >= 0]
        if not hits:
            return False
        at, self.stop_reason = min(hits)
        self.text = self.text[:at]
        return True


class Generation:
    """All sequences of one HTTP request. One task waits for it.

    It ends in one of three ways: all sequences are complete (`done`), the client has left (`gone`),
    or the engine has failed (`error`).
    """

    __slots__ = (
        "_abort",
        "_choices",
        "_news",
        "_open",
        "_waiter",
        "_whole",
        "error",
        "gone",
        "sequences",
    )

    def __init__(self, *, choices: int, whole: bool, abort: Callable[[Generation], None]) -> None:
        self.sequences: list[TextSequence] = []
        self.gone = False
        self.error: ApiError | None = None
        self._choices = choices
        self._whole = whole
        self._abort = abort
        self._open = 0
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def done(self) -> bool:
        """Every sequence is complete."""
        return self._open == 0

    def add(self, sequence: TextSequence) -> None:
        """Take in a sequence that is about to be generated, or is complete as it came."""
        self.sequences.append(sequence)
        self._open += sequence.finish_reason is None

    def abort(self) -> None:
        """End it now, because there is nobody to answer. May be called twice, and when done."""
        self.gone = True
        self._abort(self)
        self._tell()

    def fail(self, error: ApiError) -> None:
        """End it because the engine cannot go on."""
        self.error = error
        self._tell()

    def progressed(self, *, completed: int = 0) -> None:
        """Note that a sequence has made a token, or that one (or more) is complete."""
        self._open -= completed
        if not self._whole or self._open == 0:
            self._tell()

    async def changed(self) -> None:
        """Wait until there is something to take, or the end. `whole`: only until the end.

        Raises:
            ApiError: the engine has failed.
        """
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._news = False
        if self.error is not None:
            raise self.error

    def usage(self) -> Usage:
        """Return the tokens so far. A prompt counts once, however many choices it has."""
        first = self.sequences[:: self._choices]
        return Usage(
            prompt_tokens=sum(len(sequence.prompt) for sequence in first),
            cached_tokens=sum(sequence.cached_tokens for sequence in first),
            completion_tokens=sum(len(sequence.token_ids) for sequence in self.sequences),
        )

    def _tell(self) -> None:
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
