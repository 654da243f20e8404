"""One sequence as the engine's scheduler knows it: lengths and block hashes, no text."""

from __future__ import annotations

from enum import Enum

from aibrix_ray.engine_model.blocks import Lease


class Phase(Enum):
    """Where a sequence stands in its life."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    ENDED = "ended"


class EngineRequest:
    """One sequence to compute; may be subclassed to carry what its owner needs with it.

    `block_hashes` are the hashes of the sequence's full blocks, first block first, as far as the
    owner knows them: it may append those of blocks that the output fills. Empty: nothing is shared.
    Everything below them in the constructor is the scheduler's to write and anyone's to read.
    """

    __slots__ = (
        "block_hashes",
        "cached_tokens",
        "computed_tokens",
        "decoding_since",
        "end_mark",
        "lease",
        "max_output_tokens",
        "output_tokens",
        "phase",
        "preemptions",
        "prompt_tokens",
        "published_blocks",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        *,
        prompt_tokens: int,
        max_output_tokens: int,
        block_hashes: list[int] | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.block_hashes = [] if block_hashes is None else block_hashes
        self.phase = Phase.WAITING
        #: Prompt tokens found in the prefix cache when the sequence first ran.
        self.cached_tokens = 0
        self.preemptions = 0
        # While the sequence decodes, both are as of round `decoding_since`: a round adds one token
        # to every decoding sequence, so none of them is touched in it.
        self.output_tokens = 0
        self.computed_tokens = 0
        self.decoding_since = 0
        self.lease: Lease | None = None
        self.published_blocks = 0
        self.end_mark: object = None

    @property
    def prefill_tokens(self) -> int:
        """Tokens to be computed before the next token can be made."""
        return self.prompt_tokens + self.output_tokens

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request_id} {self.phase.value}>"
