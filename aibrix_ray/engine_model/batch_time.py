"""How long one engine step takes, from what it computes. Knows no request and no clock.

    t = (floor^p + (c_tok * n)^p)^(1/p)  weights read once, or the GEMMs: a smooth maximum
      + c_q * sum of q * (ctx + q / 2)   attention of the prefilling sequences
      + c_kv * KV                        the KV cache that the decoding sequences read
      + c_seq * S + c0                   what each sequence, and each step, costs the host

with n new tokens in all, q new tokens on top of ctx for each prefilling sequence, KV tokens held
by the decoding ones, and S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from aibrix_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BatchTimeModel:
    """The coefficients of one model on one accelerator, in milliseconds (`p` has no unit)."""

    floor_ms: float
    c_tok_ms: float
    p: float
    c_q_ms: float
    c_kv_ms: float
    c_seq_ms: float
    c0_ms: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1.0 if field.name == "p" else 0.0
            if not least <= value < float("inf"):
                raise ConfigError(
                    path=f"coefficients.{field.name}",
                    value=value,
                    expected=f"a finite number of at least {least:g}",
                )

    def gemm_s(self, new_tokens: int) -> float:
        """Return the time for the weights and the matrix products of `new_tokens` alone."""
        p = self.p
        smooth_ms: float = (self.floor_ms**p + (self.c_tok_ms * new_tokens) ** p) ** (1.0 / p)
        return smooth_ms / 1000.0

    def step_s(
        self,
        new_tokens: int,
        *,
        attention: float = 0.0,
        kv_tokens: int = 0,
        sequences: int = 1,
    ) -> float:
        """Return the duration of one step.

        Args:
            new_tokens: tokens computed, of prefilling and decoding sequences together.
            attention: sum of `attention_work` over the prefilling sequences.
            kv_tokens: tokens that the decoding sequences hold.
            sequences: sequences in the batch, of both kinds.
        """
        rest_ms = (
            self.c_q_ms * attention
            + self.c_kv_ms * kv_tokens
            + self.c_seq_ms * sequences
            + self.c0_ms
        )
        return self.gemm_s(new_tokens) + rest_ms / 1000.0


def attention_work(new_tokens: int, context_tokens: int) -> float:
    """Return the token pairs that `new_tokens` look at on top of `context_tokens`."""
    return new_tokens * (context_tokens + new_tokens / 2)
