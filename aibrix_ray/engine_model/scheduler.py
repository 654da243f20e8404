"""Continuous batching as vLLM does it: who computes what in the next step of one engine.

    submit ──▶ waiting ──admit──▶ prefilling ──▶ decoding ──▶ ended
                  ▲                    │             │
                  └──── preempt (newest first) ──────┘

Decodes come first, one token each. Prompts are computed in chunks, first come first served, up to
the step's token budget. A sequence is admitted only if all its blocks fit. When a decoding one
needs a block and there is none, the newest sequence gives up its blocks and is computed anew later.

Pure: the owner asks for a step, lets its duration pass on whatever clock, and completes it. A round
costs work only for sequences that change in it, not for each one that decodes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from aibrix_ray.engine_model.batch_time import BatchTimeModel, attention_work
from aibrix_ray.engine_model.blocks import BlockCache, Lease
from aibrix_ray.engine_model.decodes import DecodeSet
from aibrix_ray.engine_model.request import EngineRequest, Phase
from aibrix_ray.engine_model.step import Step, StepEvents
from aibrix_ray.errors import BadRequest, ConfigError

_Chunks = list[tuple[EngineRequest, int]]


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What one engine can hold, and compute in one step."""

    kv_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("kv_blocks", "block_size", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ConfigError(path=name, value=getattr(self, name), expected="at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                path="max_num_batched_tokens",
                value=self.max_num_batched_tokens,
                expected=f"at least max_num_seqs ({self.max_num_seqs})",
                hint="each running sequence computes at least one token a step",
            )


@dataclass(slots=True)
class SchedulerTotals:
    """Counted since the scheduler was made. Prefix figures are in tokens, as vLLM counts them."""

    requests: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0


class Scheduler:
    """Schedules one engine. Calls of `plan` and `complete` alternate; the others come any time."""

    def __init__(self, model: BatchTimeModel, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.totals = SchedulerTotals()
        self.cache = BlockCache(limits.kv_blocks)
        self._model = model
        self._requests: dict[str, EngineRequest] = {}
        self._waiting: OrderedDict[EngineRequest, None] = OrderedDict()
        # Both in order of arrival.
        self._running: dict[EngineRequest, None] = {}
        self._prefilling: dict[EngineRequest, None] = {}
        self._decoding = DecodeSet(limits.block_size)
        self._step: Step | None = None
        self._refused_at = -1  # `cache.releases` when the head of the queue was last refused

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue, new and preempted."""
        return len(self._waiting)

    @property
    def decoding(self) -> Collection[EngineRequest]:
        """The sequences that make a token in each step. A live view: copy it before a change."""
        return self._decoding

    def submit(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            BadRequest: it could never run, since the whole cache is smaller than its sequence.
        """
        assert request.request_id not in self._requests, f"{request.request_id} is known already"
        assert request.prompt_tokens > 0, "an empty prompt makes no token"
        tokens = request.prompt_tokens + request.max_output_tokens
        room = self.limits.kv_blocks * self.limits.block_size
        if tokens > room:
            raise BadRequest(
                f"{request.prompt_tokens} prompt tokens and up to {request.max_output_tokens} "
                f"output tokens exceed this engine's KV cache of {room} tokens"
            )
        self.totals.requests += 1
        self._requests[request.request_id] = request
        self._waiting[request] = None

    def abort(self, request_id: str) -> bool:
        """End a request now, also in the middle of a step; false if it has ended already.

        Its tokens of the step under way are not made (a simulator that planned several rounds cuts
        and completes the step first). Its full blocks stay cached.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        if request.phase is Phase.WAITING:
            del self._waiting[request]
            self._refused_at = -1  # another one may stand at the head now
        else:
            self._leave(request)
        self._end(request)
        return True

    def plan(self, *, max_rounds: int = 1) -> Step | None:
        """Return the next step, to be completed once its duration has passed; `None` when idle.

        Args:
            max_rounds: bound of the rounds in one step. More than one spares a simulator the steps
                in which nothing is admitted, preempted or finished; see `Step.cut`.
        """
        assert self._step is None, "the step before has not been completed"
        preempted = self._grow_decodes()
        chunks = self._prefill()
        if not preempted:
            self._admit(chunks)
        if not chunks and not self._decoding:
            assert not self._waiting, "the queue stands still beside an empty engine"
            return None
        rounds = 1 if max_rounds == 1 or chunks or preempted else self._quiet_rounds(max_rounds)
        self._step = self._timed(chunks, preempted, rounds)
        return self._step

    def complete(self, step: Step) -> StepEvents:
        """Account for a step that has run, and say what it brought about."""
        assert step is self._step, "only the planned step can be completed"
        self._step = None
        events = StepEvents(step.preempted)
        self._pass_rounds(step.rounds, events)
        for request, tokens in step.chunks:
            if request.phase is not Phase.PREFILL:
                continue  # aborted while the step ran
            request.computed_tokens += tokens
            if request.computed_tokens == request.prefill_tokens:
                self._prefilled(request, events)
        self.totals.generation_tokens += events.tokens
        return events

    def check_integrity(self) -> None:
        """Assert that blocks, queues and counts agree."""
        self.cache.check_integrity()
        self._decoding.check_integrity()
        running, decoding = set(self._running), set(self._decoding)
        assert running == set(self._prefilling) | decoding, "a running sequence does nothing"
        assert not decoding & set(self._prefilling), "a sequence both prefills and decodes"
        known = set(self._requests.values())
        assert known == running | set(self._waiting), "a sequence is lost"
        assert self.cache.leases == len(running), "a lease outlives its sequence"
        for request in running:
            assert request.lease is not None, f"{request} runs without blocks"
            room = request.lease.blocks * self.limits.block_size
            assert room >= self._computed(request), f"{request} computed more than it holds"

    # Planning a step.

    def _grow_decodes(self) -> list[EngineRequest]:
        """Give a block to each decoding sequence whose blocks are full; return who had to yield."""
        preempted: list[EngineRequest] = []
        for request in self._decoding.due():
            if request in self._decoding:  # not preempted for one before it
                self._grow(request, preempted)
        return preempted

    def _grow(self, request: EngineRequest, preempted: list[EngineRequest]) -> None:
        lease = self._publish(request, self._computed(request))
        while not self.cache.append(lease):
            victim = next(reversed(self._running))
            self._preempt(victim)
            preempted.append(victim)
            if victim is request:
                return

    def _preempt(self, request: EngineRequest) -> None:
        self._leave(request)
        request.phase = Phase.WAITING
        request.computed_tokens = 0
        request.preemptions += 1
        self.totals.preemptions += 1
        # Whoever waits came later than whoever ran.
        self._waiting[request] = None
        self._waiting.move_to_end(request, last=False)

    def _prefill(self) -> _Chunks:
        """Share what the decodes leave of the budget among the sequences that are prefilling."""
        chunks: _Chunks = []
        budget = self.limits.max_num_batched_tokens - len(self._decoding)
        for request in self._prefilling:
            if budget == 0:
                break
            budget -= self._chunk(request, budget, chunks)
        return chunks

    def _admit(self, chunks: _Chunks) -> None:
        """Start waiting sequences, in their order, while seats, budget and blocks allow it."""
        budget = self.limits.max_num_batched_tokens - len(self._decoding)
        budget -= sum(tokens for _, tokens in chunks)
        while budget > 0 and self._waiting and len(self._running) < self.limits.max_num_seqs:
            if self._refused_at == self.cache.releases:
                return
            request = next(iter(self._waiting))
            if not self._start(request):
                self._refused_at = self.cache.releases
                return
            budget -= self._chunk(request, budget, chunks)

    def _start(self, request: EngineRequest) -> bool:
        tokens, size = request.prefill_tokens, self.limits.block_size
        hits = 0
        if self.limits.prefix_caching:
            # The last token is computed in any case: the next one is made from its output.
            hits = self.cache.match(request.block_hashes, (tokens - 1) // size)
        lease = self.cache.allocate(request.block_hashes[:hits], -(-tokens // size) - hits)
        if lease is None:
            return False
        request.lease = lease
        request.published_blocks = hits
        request.computed_tokens = hits * size
        if request.preemptions == 0 and self.limits.prefix_caching:
            request.cached_tokens = hits * size
            self.totals.prefix_queries += tokens
            self.totals.prefix_hits += hits * size
        request.phase = Phase.PREFILL
        del self._waiting[request]
        self._running[request] = self._prefilling[request] = None
        return True

    def _chunk(self, request: EngineRequest, budget: int, chunks: _Chunks) -> int:
        tokens = min(budget, request.prefill_tokens - request.computed_tokens)
        chunks.append((request, tokens))
        # Found from now on: who shares these blocks in the same step reads them after they are
        # written, layer by layer.
        self._publish(request, request.computed_tokens + tokens)
        return tokens

    def _quiet_rounds(self, max_rounds: int) -> int:
        """Return how many rounds can pass before a sequence finishes or blocks run short."""
        until_short = self._decoding.rounds_until_short(self.cache.available)
        return min(max_rounds, until_short, self._decoding.rounds_until_done())

    def _timed(
        self,
        chunks: _Chunks,
        preempted: list[EngineRequest],
        rounds: int,
    ) -> Step:
        decodes = len(self._decoding)
        new_tokens, attention = decodes, 0.0
        for request, tokens in chunks:
            new_tokens += tokens
            attention += attention_work(tokens, request.computed_tokens)
        first_s = self._model.step_s(
            new_tokens,
            attention=attention,
            kv_tokens=self._decoding.kv_tokens,
            sequences=decodes + len(chunks),
        )
        return Step(
            chunks=chunks,
            decodes=decodes,
            preempted=preempted,
            first_s=first_s,
            growth_s=self._model.c_kv_ms * decodes / 1000.0,
            rounds=rounds,
        )

    # Completing a step.

    def _pass_rounds(self, rounds: int, events: StepEvents) -> None:
        events.tokens += len(self._decoding) * rounds
        for passed in range(rounds):
            if passed:
                shortage = self._grow_decodes()
                assert not shortage, "more rounds were planned than there were blocks for"
            self._decoding.advance()
        while (request := self._decoding.next_done()) is not None:
            self._finish(request, events)

    def _prefilled(self, request: EngineRequest, events: StepEvents) -> None:
        if request.output_tokens == 0:
            self.totals.prompt_tokens += request.prompt_tokens
        if request.max_output_tokens > 0:
            events.tokens += 1
            request.output_tokens += 1
            if request.output_tokens == 1:
                events.first_tokens.append(request)
        if request.output_tokens == request.max_output_tokens:
            self._finish(request, events)
        else:
            del self._prefilling[request]
            self._decoding.add(request)

    def _finish(self, request: EngineRequest, events: StepEvents) -> None:
        self._leave(request)
        self._end(request)
        events.finished.append(request)

    # Leaving.

    def _leave(self, request: EngineRequest) -> None:
        """Take a running sequence off the engine; its published blocks stay cached."""
        if request.phase is Phase.DECODE:
            self._decoding.remove(request)
        else:
            del self._prefilling[request]
        del self._running[request]
        self.cache.free(self._publish(request, request.computed_tokens))
        request.lease = None

    def _end(self, request: EngineRequest) -> None:
        request.phase = Phase.ENDED
        del self._requests[request.request_id]

    # Looking at one sequence.

    def _computed(self, request: EngineRequest) -> int:
        if request.phase is Phase.DECODE:
            return self._decoding.computed_tokens(request)
        return request.computed_tokens

    def _publish(self, request: EngineRequest, computed_tokens: int) -> Lease:
        """Let others find the sequence's full blocks, as far as their hashes are known."""
        lease = request.lease
        assert lease is not None, f"{request} holds no blocks"
        if self.limits.prefix_caching:
            full = min(computed_tokens // self.limits.block_size, len(request.block_hashes))
            while request.published_blocks < full:
                self.cache.publish(lease, request.block_hashes[request.published_blocks])
                request.published_blocks += 1
        return lease
