"""What an engine is told, by kind. Knows neither vLLM's own arguments nor how an engine starts.

`kind` may be left out and then means vllm.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from aibrix_ray.config.part import DAY_S, Part, refuse


class VllmEngineConfig(Part):
    """vLLM inside the replica. What is null is left to vLLM's own default."""

    kind: Literal["vllm"] = Field(default="vllm", description="The engine: vLLM.")
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Longest sequence in tokens, prompt and answer together; null: the model's.",
    )
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Requests that one engine step may hold; null: vLLM's default.",
    )
    dtype: str = Field(
        default="auto",
        description="Type of weights and activations: auto, half, float16, bfloat16, float or "
        "float32.",
    )
    block_size: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Tokens in one block of the KV cache; null: vLLM's default.",
    )
    enforce_eager: bool | None = Field(
        default=None,
        description="true: no compiled graphs (starts faster, runs slower); null: vLLM's default.",
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Share of the accelerator's memory that the engine may use, above 0 and up to "
        "1; needs `accelerator`.",
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0.0,
        le=1024.0**2,
        description="Size of the KV cache in GiB, on a CPU only (VLLM_CPU_KVCACHE_SPACE).",
    )
    prefix_caching: bool = Field(
        default=True,
        description="Reuse KV blocks of equal prompt beginnings.",
    )
    tool_parser: str | None = Field(
        default=None,
        min_length=1,
        description="vLLM's tool-call parser by name; also turns automatic tool choice on.",
    )
    reasoning_parser: str | None = Field(
        default=None,
        min_length=1,
        description="vLLM's reasoning parser by name.",
    )
    clean_answers: bool = Field(
        default=True,
        description="Bring answers and errors to OpenAI's published schema; false: vLLM's own.",
    )
    args: dict[str, Any] = Field(
        default={},
        description="Any other engine argument of vLLM by its Python name, such as seed.",
    )

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        if dtype in _DTYPES:
            return dtype
        near = difflib.get_close_matches(dtype, _DTYPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "auto takes the checkpoint's own"
        raise refuse((), dtype, expected=f"one of {', '.join(_DTYPES)}", hint=hint)

    @field_validator("args")
    @classmethod
    def _args_have_no_field(cls, args: dict[str, Any]) -> dict[str, Any]:
        for name, value in args.items():
            plain = name.lstrip("-").replace("-", "_")
            if plain in _ARGS_WITH_A_FIELD:
                raise refuse(
                    (name,),
                    value,
                    expected="an argument that has no field of its own",
                    hint=f"set {_ARGS_WITH_A_FIELD[plain]} instead",
                )
            if plain != name:
                raise refuse(
                    (name,), value, expected="vLLM's Python name", hint=f"write {plain!r} instead"
                )
        return args


_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")

#: vLLM's argument → the field (or the owner) that decides it here.
_ARGS_WITH_A_FIELD = {
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "dtype": "engine.dtype",
    "block_size": "engine.block_size",
    "enforce_eager": "engine.enforce_eager",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "kv_cache_gib": "engine.kv_cache_gib",
    "enable_prefix_caching": "engine.prefix_caching",
    "prefix_caching": "engine.prefix_caching",
    "tool_call_parser": "engine.tool_parser",
    "enable_auto_tool_choice": "engine.tool_parser",
    "tool_parser": "engine.tool_parser",
    "reasoning_parser": "engine.reasoning_parser",
    "model": "args.source (what is loaded) and args.model (its name)",
    "served_model_name": "args.model, and aliases in the gateway's user_config",
    "revision": "args.revision",
    "tensor_parallel_size": "args.tensor_parallel",
    "pipeline_parallel_size": "args.pipeline_parallel",
    "host": "the gateway's args.host; engines listen privately and",
    "port": "the gateway's args.port",
    "uds": "nothing: engines listen on a private socket; the gateway's args.port",
    "api_key": "nothing: engines are reached through the gateway only",
}


class SimulatedEngineConfig(Part):
    """An engine without a model: a batch-time model runs in real time, its tokens are fixed."""

    kind: Literal["simulated"] = Field(default="simulated", description="The engine: simulated.")
    profile: str = Field(
        default="cpu",
        min_length=1,
        description="Accelerator whose batch-time model is played, such as cpu or A10.",
    )
    speed: float = Field(
        default=1.0,
        gt=0.0,
        le=1_000_000.0,
        description="Virtual seconds that pass in one real second.",
    )
    max_model_len: int = Field(
        default=4096,
        ge=1,
        le=100_000_000,
        description="Longest sequence in tokens, prompt and answer together.",
    )
    max_num_seqs: int = Field(
        default=64, ge=1, le=65_536, description="Requests that one engine step may hold."
    )
    max_num_batched_tokens: int = Field(
        default=2048, ge=1, le=100_000_000, description="Tokens that one engine step may compute."
    )
    block_size: int = Field(
        default=16, ge=1, le=1024, description="Tokens in one block of the KV cache."
    )
    kv_blocks: int = Field(
        default=4096, ge=1, le=1_000_000_000, description="Blocks that the KV cache holds."
    )
    startup_s: float = Field(
        default=0.0, ge=0.0, le=DAY_S, description="Real seconds until the engine is ready."
    )
    prefix_caching: bool = Field(
        default=True, description="Reuse KV blocks of equal prompt beginnings."
    )

    @model_validator(mode="after")
    def _longest_sequence_fits(self) -> SimulatedEngineConfig:
        room = self.block_size * self.kv_blocks
        if self.max_model_len > room:
            raise refuse(
                ("max_model_len",),
                self.max_model_len,
                expected=f"at most block_size * kv_blocks = {room} tokens, the whole KV cache",
                hint="raise kv_blocks or lower max_model_len",
            )
        return self


def _tag(value: object) -> str:
    """Return the union tag of raw data or of a model; without `kind` it is vLLM."""
    kind = value.get("kind", "vllm") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"<{kind}>"


#: kind → its model. The names of an error's tags are these in angle brackets.
ENGINES: dict[str, type[Part]] = {"vllm": VllmEngineConfig, "simulated": SimulatedEngineConfig}

EngineConfig = Annotated[
    Annotated[VllmEngineConfig, Tag("<vllm>")]
    | Annotated[SimulatedEngineConfig, Tag("<simulated>")],
    Discriminator(_tag),
]
