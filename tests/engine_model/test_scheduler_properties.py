"""Blocks, tokens and sequences are conserved whatever happens in whatever order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aibrix_ray.engine_model import EngineRequest, Phase, Step
from tests.engine_model.driving import make_request, make_scheduler

BLOCK, BLOCKS = 4, 12


class SchedulerMachine(RuleBasedStateMachine):
    """Submits, runs and aborts at random on an engine so small that it often preempts."""

    @initialize(caching=st.booleans(), seats=st.integers(1, 5))
    def start(self, caching: bool, seats: int) -> None:
        self.scheduler = make_scheduler(
            kv_blocks=BLOCKS,
            block_size=BLOCK,
            max_num_seqs=seats,
            max_num_batched_tokens=8,
            prefix_caching=caching,
        )
        self.requests: list[EngineRequest] = []
        self.aborted: set[str] = set()
        self.finished: list[str] = []
        self.first: list[str] = []
        self.tokens = 0
        self.step: Step | None = None

    @rule(prompt=st.integers(1, 30), output=st.integers(0, 18), family=st.integers(0, 2))
    def submit(self, prompt: int, output: int, family: int) -> None:
        hashes = [100 * family + index for index in range(prompt // BLOCK)]
        request = make_request(str(len(self.requests)), prompt, output, hashes)
        self.requests.append(request)
        self.scheduler.submit(request)

    @rule(which=st.integers(0, 1000))
    def abort(self, which: int) -> None:
        if self.requests:
            request = self.requests[which % len(self.requests)]
            if self.scheduler.abort(request.request_id):
                self.aborted.add(request.request_id)

    @rule(rounds=st.integers(1, 9))
    def plan(self, rounds: int) -> None:
        if self.step is None:
            self.step = self.scheduler.plan(max_rounds=rounds)

    @rule(share=st.floats(0, 1))
    def complete(self, share: float) -> None:
        if self.step is None:
            return
        if not self.aborted:
            self.step.cut(self.step.duration_s * share)
        events = self.scheduler.complete(self.step)
        self.step = None
        self.tokens += events.tokens
        self.first += [request.request_id for request in events.first_tokens]
        self.finished += [request.request_id for request in events.finished]

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            self.complete(1.0)
            self.plan(1)
            self.nothing_is_lost()
            if self.step is None:
                break
        assert (self.scheduler.running, self.scheduler.waiting) == (0, 0)
        assert self.scheduler.cache.usage == 0.0
        self.assert_every_sequence_got_its_due()

    def assert_every_sequence_got_its_due(self) -> None:
        assert len(set(self.finished)) == len(self.finished)
        assert set(self.finished) | self.aborted == {r.request_id for r in self.requests}
        assert not set(self.finished) & self.aborted
        for request in self.requests:
            assert request.phase is Phase.ENDED
            assert request.lease is None
            if request.request_id not in self.aborted:
                assert request.output_tokens == request.max_output_tokens
        assert self.tokens == sum(request.output_tokens for request in self.requests)
        assert self.scheduler.totals.generation_tokens == self.tokens
        # First come, first served: a sequence that was not aborted has its turn in order.
        order = [int(name) for name in self.first]
        assert order == sorted(order)


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None
)
TestSchedulerMachine = SchedulerMachine.TestCase
