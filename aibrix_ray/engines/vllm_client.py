"""vLLM's client with a second mouth: what each call used, and the ids that carry a stream over.

Imports nothing of vLLM; its names come from `vllm_modules`. Both go to the private meta channel,
in the context of the HTTP request that is served.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aibrix_ray.engines import vllm_carrying as carrying
from aibrix_ray.engines.meta import current_carry, record_usage
from aibrix_ray.engines.resume import Carry

#: A beam search asks the engine once a beam and token; these calls are no answers of their own.
_BEAM = "-beam-"


class UsageMeter:
    """Counts one generate call's tokens from its outputs and reports them once, at its end."""

    def __init__(self, *, delta: bool) -> None:
        self._delta = delta
        self._completion: dict[int, int] = {}
        self._prompt = 0
        self._cached: int | None = None
        self._told = False

    def see(self, output: Any) -> None:
        """Take one output before it is handed on; the last one reports."""
        for completion in output.outputs:
            count = len(completion.token_ids)
            if self._delta:  # only what is new; else all so far
                count += self._completion.get(completion.index, 0)
            self._completion[completion.index] = count
        self.see_prompt(output)

    def see_prompt(self, output: Any) -> None:
        """Take an output without tokens of its own (pooling)."""
        encoder_ids = getattr(output, "encoder_prompt_token_ids", None)
        self._prompt = len(output.prompt_token_ids or ()) + len(encoder_ids or ())
        if self._cached is None:  # later choices of one prompt hit what the first one computed
            self._cached = output.num_cached_tokens
        if output.finished:
            self.tell()

    def tell(self) -> None:
        """Report what was seen so far, once."""
        if self._told:
            return
        self._told = True
        record_usage(
            prompt_tokens=self._prompt,
            cached_tokens=self._cached or 0,
            completion_tokens=sum(self._completion.values()),
        )


def metered_client(names: Mapping[str, Any]) -> Any:
    """Return vLLM's client class, which reports usage and token ids within a request's context."""
    base: Any = names["AsyncLLM"]
    delta = names["RequestOutputKind"].DELTA
    reasons = names["FinishReason"]
    defaults = carrying.default_parameters(names["SamplingParams"])

    class MeteredLLM(base):  # type: ignore[misc]
        """vLLM's client; tells the private meta channel what each call used and made."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._obstacle = carrying.engine_obstacle(
                self.vllm_config, names["cached_load_custom_logitsprocs"]
            )

        def generate(
            self, prompt: Any, params: Any, request_id: str, **options: Any
        ) -> AsyncIterator[Any]:
            """Generate as vLLM does.

            Not a generator itself: what cannot be continued is refused here, before the answer has
            a head.
            """
            carry = current_carry()
            if carry is not None and not carry.decide(
                self._carry_obstacle(carry, prompt, params, options)
            ):
                raise names["HTTPException"](409, carry.refusal)
            outputs = super().generate(prompt, params, request_id, **options)
            is_answer = _BEAM not in request_id
            meter = UsageMeter(delta=params.output_kind == delta) if is_answer else None
            if carry is None or not carry.carried:
                return _metered(outputs, meter)
            told = _told(outputs, carry, broken=names["EngineDeadError"])
            return _metered(_resumed(told, carry) if carry.resumes else told, meter)

        async def encode(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
            """Encode as vLLM does."""
            meter = UsageMeter(delta=False)
            async with contextlib.aclosing(super().encode(*args, **options)) as outputs:
                async for output in outputs:
                    meter.see_prompt(output)
                    yield output

        def _carry_obstacle(
            self, carry: Carry, prompt: Any, params: Any, options: Mapping[str, Any]
        ) -> str | None:
            if not carry.permitted:
                return "only the one prompt of a chat or a completion is carried over"
            carry.permitted = False  # for the second prompt of a request
            if params.output_kind != delta:
                return "it is no stream"
            if not isinstance(prompt, dict) or prompt.get("type") != "token":
                return "its prompt is more than text"
            if options.get("reasoning_parser_kwargs") is not None:
                return "a reasoning parser reads its text"
            return (
                self._obstacle
                or carrying.parameter_obstacle(params, defaults)
                or carrying.ids_obstacle(
                    carry.before or [], params, vocabulary=self.model_config.get_vocab_size()
                )
            )

        async def _add_request(
            self, request: Any, prompt: Any, parent_req: Any, index: int, queue: Any
        ) -> None:
            """Register a request and hand it to the engine's core.

            One that is resumed is registered as it came, with its ids replayed; the core gets it
            with these ids as a part of its prompt, or not at all if they are the whole answer.
            """
            carry = current_carry()
            if carry is None or not carry.carried or carry.before is None:
                await super()._add_request(request, prompt, parent_req, index, queue)
                return
            self.check_admission(request_id=request.request_id)
            processor = self.output_processor
            processor.add_request(request, prompt, parent_req, index, queue)
            state = processor.request_states[request.request_id]
            replay = carrying.replayed(state, request.sampling_params, carry.before, reasons)
            if replay.finished:
                processor._finish_request(state)
                queue.put(replay)
            else:
                # Not by way of the queue, which joins it with what the core makes.
                carry.replay = replay
                rest = carrying.remaining_request(request, carry.before)
                await self.engine_core.add_request_async(rest)

    return MeteredLLM


async def _metered(outputs: Any, meter: UsageMeter | None) -> AsyncIterator[Any]:
    # Closing the inner generator is what aborts the request in the engine.
    async with contextlib.aclosing(outputs):
        async for output in outputs:
            if meter is not None:
                meter.see(output)
            yield output


async def _told(outputs: Any, carry: Carry, *, broken: type[Exception]) -> AsyncIterator[Any]:
    """Tell the ids of a carried stream's outputs, before these become events."""
    first = True
    async with contextlib.aclosing(outputs):
        try:
            async for output in outputs:
                if first:
                    first = False
                    prompt_tokens = len(output.prompt_token_ids)
                    cached = carry.cached_of(output.num_cached_tokens, prompt_tokens=prompt_tokens)
                    output.num_cached_tokens = cached
                    if carry.resumes:  # what the first replica's cache took in, nobody says
                        output.num_cache_creation_tokens = None
                    carry.begin(prompt_tokens=prompt_tokens, cached_tokens=cached)
                    if carry.resumes and output.finished and carry.replay is None:
                        yield output  # the ids were the whole answer
                        continue
                carry.add(output.outputs[0].token_ids)
                yield output
        except broken:
            carry.broken = True
            raise


async def _resumed(outputs: Any, carry: Carry) -> AsyncIterator[Any]:
    """Put the replayed output before the first one.

    The serving layer so counts its tokens and forms its events, which are dropped.
    """
    async with contextlib.aclosing(outputs):
        try:
            async for output in outputs:
                replay, carry.replay = carry.replay, None
                if replay is not None:
                    replay.num_cached_tokens = output.num_cached_tokens
                    replay.num_cache_creation_tokens = None
                    yield replay
                    carry.replaying = False
                yield output
        finally:
            # The end of an answer that was replayed whole, or an error, is news to the client.
            carry.replaying = False


def meter_beam_search(serving: Any) -> None:
    """Report a beam search's usage by its result, as its answer does."""
    search = getattr(serving, "beam_search", None)
    if search is None:
        return

    async def beam_search(*args: Any, **options: Any) -> AsyncIterator[Any]:
        meter = UsageMeter(delta=False)
        async with contextlib.aclosing(search(*args, **options)) as outputs:
            async for output in outputs:
                meter.see(output)
                yield output

    serving.beam_search = beam_search


def carry_requests(
    serving: Any,
    method: str,
    obstacle: Callable[[Any], str | None],
    *,
    opening: bool,
    refusal: Callable[[int, str | None], Exception],
) -> None:
    """Let the serving layer's requests be carried over if their form does not forbid it.

    Args:
        serving: vLLM's object for an endpoint.
        method: what of it answers a request.
        obstacle: returns what in a request's form forbids it.
        opening: its streams begin with an event that has no text.
        refusal: makes the error for a request that is to be continued and cannot be.
    """
    create = getattr(serving, method)

    async def judged(request: Any, *args: Any, **options: Any) -> Any:
        carry = current_carry()
        if carry is not None:
            found = obstacle(request)
            if found is None:
                carry.permit(opening=opening)
            elif not carry.decide(found):
                raise refusal(409, found)
        return await create(request, *args, **options)

    setattr(serving, method, judged)
