"""The catalogue of batch-time profiles by accelerator name. Reads no device.

Of the GPUs' rows only `floor`, `c_tok` and `p` ever come from measured times, and only where
`fitted` says so; everything else is a roofline estimate for an 8 B model with grouped-query
attention in bf16, with the per-step and per-sequence cost of vLLM V1.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from aibrix_ray.engine_model.batch_time import BatchTimeModel
from aibrix_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AcceleratorProfile:
    """One model on one accelerator: its step times, its KV cache and its price.

    `cost_per_hour` is in dollars, `None` where nobody named a price.
    """

    name: str
    model: str
    coefficients: BatchTimeModel
    kv_tokens: int
    cost_per_hour: float | None
    source: str
    fitted: bool


def accelerator_profile(name: str, *, path: str = "profile") -> AcceleratorProfile:
    """Return the profile of that name; capitals do not matter.

    Args:
        name: an accelerator of the catalogue.
        path: where the name stands in the configuration, for the error.

    Raises:
        ConfigError: there is none; the error lists the names.
    """
    found = _BY_KEY.get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), _BY_KEY, n=1)
    raise ConfigError(
        path=path,
        value=name,
        expected=f"an accelerator profile: one of {', '.join(accelerator_names())}",
        hint=f"did you mean {_BY_KEY[near[0]].name!r}?" if near else "",
    )


def accelerator_names() -> tuple[str, ...]:
    """List the names of the catalogue."""
    return tuple(sorted(profile.name for profile in _CATALOGUE))


_MODEL = "Llama-3.1-8B"
_ROOFLINE = "roofline estimate, no measurement"


def _gpu(
    name: str,
    floor_ms: float,
    c_tok_ms: float,
    c_kv_ms: float,
    c_q_ms: float,
    kv_tokens: int,
    *,
    cost_per_hour: float | None = None,
    p: float = 1.5,
    source: str = _ROOFLINE,
    fitted: bool = False,
) -> AcceleratorProfile:
    coefficients = BatchTimeModel(
        floor_ms=floor_ms,
        c_tok_ms=c_tok_ms,
        p=p,
        c_q_ms=c_q_ms,
        c_kv_ms=c_kv_ms,
        c_seq_ms=0.02,
        c0_ms=3.0,
    )
    return AcceleratorProfile(name, _MODEL, coefficients, kv_tokens, cost_per_hour, source, fitted)


_CPU = AcceleratorProfile(
    name="cpu",
    model="builtin:tiny",
    # Meets 3.7 ms a token alone, 66 ms for a cold prompt of 400 and 5.8 ms a step at 16 sequences.
    coefficients=BatchTimeModel(
        floor_ms=2.0, c_tok_ms=0.16, p=1.5, c_q_ms=5e-5, c_kv_ms=1e-4, c_seq_ms=0.03, c0_ms=1.65
    ),
    kv_tokens=131_072,
    cost_per_hour=None,
    source="set by hand to a few single runs of vLLM on two cores with a 4 M parameter model",
    fitted=False,
)

_INSTANT = AcceleratorProfile(
    name="instant",
    model="none",
    # 0.05 ms a step whatever it holds: for tests of everything around an engine.
    coefficients=BatchTimeModel(
        floor_ms=0.0, c_tok_ms=0.0, p=1.0, c_q_ms=0.0, c_kv_ms=0.0, c_seq_ms=0.0, c0_ms=0.05
    ),
    kv_tokens=1_048_576,
    cost_per_hour=None,
    source="no machine; for tests",
    fitted=False,
)

_CATALOGUE = (
    _gpu("L4", 63.0, 0.215, 5.8e-4, 3.0e-6, 30_000, cost_per_hour=0.70),
    _gpu(
        "A10",
        31.6,
        0.205,
        2.9e-4,
        2.8e-6,
        30_000,
        cost_per_hour=0.75,
        source=f"{_ROOFLINE}; price assumed",
    ),
    _gpu("A10G", 31.6, 0.205, 2.9e-4, 2.8e-6, 30_000, cost_per_hour=1.01),
    _gpu("A30", 20.3, 0.150, 1.9e-4, 1.1e-6, 30_000),
    _gpu(
        "V100",
        22.0,
        0.36,
        1.9e-4,
        2.8e-6,
        85_000,
        source=f"{_ROOFLINE}; no FlashAttention, model FLOPs utilisation of 0.4 assumed",
    ),
    _gpu(
        "L20",
        21.9,
        0.215,
        2.0e-4,
        2.8e-6,
        195_000,
        cost_per_hour=1.2,
        source=f"{_ROOFLINE}; price assumed",
    ),
    _gpu(
        "A40",
        26.0,
        0.135,
        2.5e-4,
        1.6e-6,
        195_000,
        p=1.47,
        source="GEMM terms: Vidur's profile of Llama-2-7B on A40, times 1.07; the rest roofline",
        fitted=True,
    ),
    _gpu(
        "A100",
        9.81,
        0.0700,
        9.0e-5,
        1.4e-6,
        415_000,
        cost_per_hour=3.67,
        p=1.54,
        source="GEMM terms: Vidur's profile of Llama-3-8B on A100; the rest roofline",
        fitted=True,
    ),
    _gpu(
        "H100",
        6.0,
        0.022,
        5.2e-5,
        5.0e-7,
        415_000,
        cost_per_hour=7.516,
        p=1.29,
        source="GEMM terms: Vidur's profile of Llama-2-7B on H100, times 1.08; the rest roofline",
        fitted=True,
    ),
    _CPU,
    _INSTANT,
)
_BY_KEY = {profile.name.lower(): profile for profile in _CATALOGUE}
