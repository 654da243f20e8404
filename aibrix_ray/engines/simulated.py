"""An engine without a model: the scheduler and the batch times of `engine_model`, in real time.

It holds KV blocks, batches, preempts and finds prefixes as vLLM does, and takes the time that an
accelerator of the catalogue would take, divided by `speed`. Its words are a hash.

One task steps the scheduler on a timeline of its own: it sleeps until absolute points of it, so
that what one sleep overshoots is caught up by the next steps. An idle engine sleeps for good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import count
from typing import cast

from aibrix_ray.asgi import AsgiApp
from aibrix_ray.config import SimulatedEngineConfig
from aibrix_ray.engine_model import (
    Scheduler,
    SchedulerLimits,
    StepEvents,
    accelerator_profile,
    root_hash,
)
from aibrix_ray.engines.base import ReplicaIdentity
from aibrix_ray.engines.simulated_app import SimulatedApp
from aibrix_ray.engines.simulated_generation import Generation, GenerationRequest, TextSequence
from aibrix_ray.engines.simulated_tokens import TokenSource
from aibrix_ray.errors import ApiError, Draining, ServerError
from aibrix_ray.types import ReplicaStats

logger = logging.getLogger(__name__)

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class SimulatedEngine:
    """Implements `Engine`. All methods run on one event loop."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        config: SimulatedEngineConfig,
        *,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Make an engine that does not step yet.

        Args:
            identity: who it is in its reports; `model` is the served name.
            config: the engine's part of the configuration.
            clock: what the timeline is held against; the running loop's time if left out.
            sleep: how the stepping task waits.

        Raises:
            ConfigError: there is no such profile, or the limits contradict each other.
        """
        self.identity = identity
        self.config = config
        self._clock = clock
        self._sleep = sleep
        self._scheduler = _make_scheduler(config)
        self._app = SimulatedApp(self)
        self._serial = count()
        self._reports = count()
        self._live: set[Generation] = set()
        self._work = asyncio.Event()
        self._stepper: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._stopped = False

    async def start(self) -> None:
        """Take `startup_s`, as loading a model would, then begin to step."""
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        if self.config.startup_s:
            await self._sleep(self.config.startup_s)
        if self._stopped:
            return
        self._stepper = asyncio.create_task(self._step_until_stopped(), name="simulated-engine")

    def openai_app(self) -> AsgiApp:
        """Return the OpenAI-compatible application."""
        return self._app

    def stats(self) -> ReplicaStats:
        """Return the figures of now."""
        scheduler, totals = self._scheduler, self._scheduler.totals
        caching = self.config.prefix_caching
        return ReplicaStats(
            replica_id=self.identity.replica_id,
            group=self.identity.group,
            model=self.identity.model,
            epoch=self.identity.epoch,
            sequence=next(self._reports),
            running=scheduler.running,
            waiting=scheduler.waiting,
            kv_usage=scheduler.cache.usage,
            kv_blocks=self.config.kv_blocks,
            max_running=self.config.max_num_seqs,
            prompt_tokens_total=totals.prompt_tokens,
            generation_tokens_total=totals.generation_tokens,
            requests_total=totals.requests,
            prefix_queries_total=totals.prefix_queries if caching else None,
            prefix_hits_total=totals.prefix_hits if caching else None,
            preemptions_total=totals.preemptions,
        )

    async def check_health(self) -> None:
        """Raise if requests make no progress any more.

        Raises:
            RuntimeError: the stepping task has not been started, was stopped, or has died.
        """
        if self._failure is not None:
            raise RuntimeError("the engine's stepping task has died") from self._failure
        if self._stopped or self._stepper is None or self._stepper.done():
            raise RuntimeError("the engine does not run")

    async def stop(self) -> None:
        """Stop stepping; whatever is being generated ends with an error. May be called twice."""
        self._stopped = True
        if self._stepper is not None:
            self._stepper.cancel()
            await asyncio.wait([self._stepper])
        self._fail_all(Draining("this engine has been stopped"))

    def generate(self, request: GenerationRequest) -> Generation:
        """Queue a request; its tokens arrive in the `Generation`, which the caller ends by `abort`.

        Raises:
            ApiError: the engine cannot take it.
        """
        if self._stopped or self._stepper is None:
            raise Draining("this engine does not run")
        if self._failure is not None:
            raise ServerError("this engine has failed")
        generation = Generation(choices=len(request.seeds), whole=request.whole, abort=self._abort)
        for sequence in self._sequences(request, generation):
            generation.add(sequence)
        try:
            for sequence in generation.sequences:
                if sequence.finish_reason is None:
                    self._scheduler.submit(sequence)
        except ApiError:
            self._abort(generation)
            raise
        if generation.done:
            generation.progressed()
        else:
            self._live.add(generation)
            self._work.set()
        return generation

    def _sequences(
        self, request: GenerationRequest, generation: Generation
    ) -> Iterator[TextSequence]:
        model = self.identity.model
        root = root_hash(model, request.cache_salt)
        choice = count()
        for prompt, max_tokens in request.prompts:
            for seed in request.seeds:
                yield TextSequence(
                    str(next(self._serial)),
                    prompt,
                    choice=next(choice),
                    generation=generation,
                    source=TokenSource(model, [*prompt, *request.before], seed=seed),
                    sampling=request.sampling,
                    max_tokens=max_tokens,
                    block_size=self.config.block_size,
                    root=root,
                    before=request.before,
                )

    def _abort(self, generation: Generation) -> None:
        self._live.discard(generation)
        for sequence in generation.sequences:
            self._scheduler.abort(sequence.request_id)

    async def _step_until_stopped(self) -> None:
        try:
            await self._step_for_ever()
        except Exception as error:
            logger.exception("replica %s: the stepping task died", self.identity.replica_id)
            self._failure = error
            self._fail_all(ServerError("this engine has failed"))

    async def _step_for_ever(self) -> None:
        assert self._clock is not None, "the clock is set at the start"
        due_s = self._clock()
        while True:
            step = self._scheduler.plan()
            if step is None:
                self._work.clear()
                await self._work.wait()
                due_s = self._clock()
                continue
            due_s += step.duration_s / self.config.speed
            # When behind, this still lets every request's task send what it has.
            await self._sleep(max(0.0, due_s - self._clock()))
            self._hand_out(self._scheduler.complete(step))

    def _hand_out(self, events: StepEvents) -> None:
        """Give a token to each sequence that made one: those that decode now or have finished."""
        made = cast("Iterable[TextSequence]", (*self._scheduler.decoding, *events.finished))
        for sequence in made:
            generation = sequence.generation
            if sequence.max_output_tokens and not sequence.advance():
                generation.progressed()
                continue
            self._scheduler.abort(sequence.request_id)  # its text ended before its tokens did
            generation.progressed(completed=1)
            if generation.done:
                self._live.discard(generation)

    def _fail_all(self, error: ApiError) -> None:
        live, self._live = self._live, set()
        for generation in live:
            for sequence in generation.sequences:
                self._scheduler.abort(sequence.request_id)
            generation.fail(error)


def _make_scheduler(config: SimulatedEngineConfig) -> Scheduler:
    profile = accelerator_profile(config.profile, path="engine.profile")
    limits = SchedulerLimits(
        kv_blocks=config.kv_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        prefix_caching=config.prefix_caching,
    )
    return Scheduler(profile.coefficients, limits)
