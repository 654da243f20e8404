"""The one file that touches vLLM's modules, which move between releases.

`load_vllm` imports every name that the engine is built on and checks that each still has the
members that are used; what is missing is named together with vLLM's version. Imports nothing of
vLLM before that, because vLLM and torch read the environment when they are imported.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
from argparse import Action, BooleanOptionalAction, Namespace
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from aibrix_ray.asgi import AsgiApp
from aibrix_ray.engines import vllm_carrying, vllm_client
from aibrix_ray.engines.versions import Installed, broken_vllm, incomplete_vllm
from aibrix_ray.errors import ConfigError

#: What is used, by the module that holds it: name → the members that are used of it.
_USED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vllm.v1.engine.async_llm": {
        "AsyncLLM": (
            *("from_engine_args", "generate", "encode", "check_health", "shutdown"),
            *("get_supported_tasks", "reset_mm_cache"),
            *("_add_request", "check_admission", "output_processor", "engine_core"),
            *("model_config", "vllm_config"),
        )
    },
    "vllm.v1.engine.core_client": {"EngineCoreClient": ("add_request_async",)},
    "vllm.v1.engine": {
        "EngineCoreRequest": ("request_id", "prompt_token_ids", "sampling_params"),
        "FinishReason": ("STOP", "LENGTH"),
    },
    "vllm.v1.engine.exceptions": {"EngineDeadError": ()},
    "vllm.v1.engine.output_processor": {
        "OutputProcessor": ("add_request", "request_states", "_finish_request"),
        "RequestState": ("make_request_output", "detokenizer"),
        "RequestOutputCollector": ("put",),
    },
    "vllm.v1.engine.detokenizer": {"IncrementalDetokenizer": ("update",)},
    "vllm.v1.sample.logits_processor": {"cached_load_custom_logitsprocs": ()},
    "vllm.config": {
        "ModelConfig": ("get_vocab_size", "logits_processors", "is_encoder_decoder"),
        "VllmConfig": ("model_config", "watermark_config"),
    },
    "fastapi": {"HTTPException": ()},
    "vllm.engine.arg_utils": {"AsyncEngineArgs": ("from_cli_args", "create_engine_config")},
    "vllm.entrypoints.openai.api_server": {"build_app": (), "init_app_state": ()},
    "vllm.entrypoints.openai.chat_completion.serving": {
        "OpenAIServingChat": ("create_chat_completion", "parser_cls")
    },
    "vllm.entrypoints.openai.chat_completion.protocol": {
        "ChatCompletionRequest": ("echo", "use_beam_search", "tool_choice")
    },
    "vllm.entrypoints.openai.completion.serving": {
        "OpenAIServingCompletion": ("create_completion",)
    },
    "vllm.entrypoints.openai.completion.protocol": {
        "CompletionRequest": ("echo", "use_beam_search")
    },
    "vllm.parser.abstract_parser": {
        "DelegatingParser": ("reasoning_parser_cls", "tool_parser_cls")
    },
    "vllm.tool_parsers.abstract_tool_parser": {"ToolParser": ("engine_based_streaming",)},
    "vllm.entrypoints.launchers.cli_args": {
        "make_arg_parser": (),
        "validate_parsed_serve_args": (),
    },
    "vllm.utils.argparse_utils": {"FlexibleArgumentParser": ("error", "parse_args")},
    "vllm.tool_parsers": {"ToolParserManager": ("list_registered", "import_tool_parser")},
    "vllm.reasoning": {"ReasoningParserManager": ("list_registered", "import_reasoning_parser")},
    "vllm.sampling_params": {
        "RequestOutputKind": ("DELTA",),
        "SamplingParams": (
            *("__struct_fields__", "output_kind", "max_tokens", "min_tokens"),
            *("eos_token_id", "stop_token_ids"),
        ),
    },
    "vllm.outputs": {
        "RequestOutput": (
            *("prompt_token_ids", "num_cached_tokens", "outputs", "finished"),
            "num_cache_creation_tokens",
        ),
        "PoolingRequestOutput": ("prompt_token_ids", "num_cached_tokens", "finished"),
        "CompletionOutput": ("index", "token_ids"),
    },
    "vllm.v1.executor.uniproc_executor": {"UniProcExecutor": ()},
    "vllm.v1.metrics.loggers": {"StatLoggerBase": ("record", "log_engine_initialized")},
    "vllm.v1.metrics.stats": {
        "SchedulerStats": (
            *("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs"),
            *("kv_cache_usage", "prefix_cache_stats"),
        ),
        "PrefixCacheStats": ("queries", "hits"),
        "IterationStats": (
            *("num_prompt_tokens", "num_generation_tokens", "num_preempted_reqs"),
            "finished_requests",
        ),
    },
}


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM's names, loaded and checked."""

    installed: Installed
    names: Mapping[str, Any]

    def parse(self, arguments: Mapping[str, Any], *, extra: Collection[str] = ()) -> Namespace:
        """Return vLLM's own arguments from values by Python name; `None` means vLLM's default.

        They go through vLLM's command-line parser, so that its conversions and checks hold.

        Args:
            arguments: name → value.
            extra: the names that the user wrote under `engine.args`.

        Raises:
            ConfigError: an argument is unknown to this vLLM, or it refuses the value.
        """
        refuse = _Refusal(self.installed.version, arguments, extra)
        parser = self._parser(refuse)
        actions = {action.dest: action for action in parser._actions if action.option_strings}
        argv = []
        for name, value in arguments.items():
            if name not in actions:
                raise refuse.unknown(name, actions)
            argv += [] if value is None else _as_words(actions[name], value)
        namespace: Namespace = parser.parse_args(argv)
        self._check_parsers(namespace, refuse)
        self.names["validate_parsed_serve_args"](namespace)
        return namespace

    def create_client(self, namespace: Namespace, logger: Callable[[Any, int], Any]) -> Any:
        """Start the engine's processes and return its client; blocks until it is ready."""
        engine_args = self.names["AsyncEngineArgs"].from_cli_args(namespace)
        client = vllm_client.metered_client(self.names)
        return client.from_engine_args(engine_args, stat_loggers=[logger])

    def stat_logger(self, steps: StepFigures) -> Callable[[Any, int], Any]:
        """Return what vLLM makes its stat loggers with; they write into `steps`."""
        base: Any = self.names["StatLoggerBase"]

        class StepLogger(base):  # type: ignore[misc]
            """Hands each engine step's figures over."""

            def __init__(self, config: Any, index: int = 0) -> None:
                self.index = index

            def record(self, scheduler: Any, iteration: Any, *_: Any, **__: Any) -> None:
                """Take the figures of one step."""
                steps.add(self.index, scheduler, iteration)

            def log_engine_initialized(self) -> None:
                """Say nothing."""

        return StepLogger

    async def build_app(self, client: Any, namespace: Namespace) -> AsgiApp:
        """Return vLLM's own OpenAI application over a running engine."""
        tasks = await client.get_supported_tasks()
        app = self.names["build_app"](namespace, tasks, client.model_config)
        await self.names["init_app_state"](client, app.state, namespace, tasks)
        chat = getattr(app.state, "openai_serving_chat", None)
        completion = getattr(app.state, "openai_serving_completion", None)
        for serving in (chat, completion):
            vllm_client.meter_beam_search(serving)
        self._carry_over(chat, completion)
        built: AsgiApp = app
        return built

    def _carry_over(self, chat: Any, completion: Any) -> None:
        """Judge the requests of both endpoints by their form; a model may lack either."""
        refusal, delegating = self.names["HTTPException"], self.names["DelegatingParser"]
        if chat is not None:
            vllm_client.carry_requests(
                chat,
                "create_chat_completion",
                lambda request: vllm_carrying.chat_obstacle(request, chat.parser_cls, delegating),
                opening=True,
                refusal=refusal,
            )
        if completion is not None:
            vllm_client.carry_requests(
                completion,
                "create_completion",
                vllm_carrying.completion_obstacle,
                opening=False,
                refusal=refusal,
            )

    def _parser(self, refuse: _Refusal) -> Any:
        base: Any = self.names["FlexibleArgumentParser"]

        class Parser(base):  # type: ignore[misc]
            """vLLM's parser, which reports instead of ending the process."""

            def error(self, message: str) -> NoReturn:
                """Refuse with what vLLM said, at the argument that it names."""
                named = re.match(r"argument --([\w-]+)[^:]*: ", message)
                name = named[1].replace("-", "_") if named else ""
                raise refuse.value(name, hint=message[named.end() if named else 0 :])

        return self.names["make_arg_parser"](Parser(add_help=False))

    def _check_parsers(self, namespace: Namespace, refuse: _Refusal) -> None:
        """Refuse names of parsers that are not registered; vLLM's server does so before a start."""
        for name, manager, load in (
            ("tool_call_parser", "ToolParserManager", "import_tool_parser"),
            ("reasoning_parser", "ReasoningParserManager", "import_reasoning_parser"),
        ):
            plugin = getattr(namespace, name.replace("_call", "") + "_plugin", None)
            if plugin:
                getattr(self.names[manager], load)(plugin)
            known = self.names[manager].list_registered()
            chosen = getattr(namespace, name)
            if chosen and chosen not in known:
                raise refuse.value(name, hint=_near(chosen, known) or f"one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Words a `ConfigError` about one of vLLM's arguments, at the place where the user set it."""

    version: str
    arguments: Mapping[str, Any]
    extra: Collection[str]

    def unknown(self, name: str, known: Collection[str]) -> ConfigError:
        """Return the error for a name that this vLLM does not have."""
        return ConfigError(
            path=self._path(name),
            value=self.arguments[name],
            expected=f"an argument of vLLM {self.version}",
            hint=_near(name, known),
        )

    def value(self, name: str, *, hint: str) -> ConfigError:
        """Return the error for a value that vLLM does not take."""
        return ConfigError(
            path=self._path(name),
            value=self.arguments.get(name, dict(self.arguments)),
            expected=f"what vLLM {self.version} accepts",
            hint=" ".join(hint.split()),
        )

    def _path(self, name: str) -> str:
        if name in self.extra:
            return f"engine.args.{name}"
        return f"engine.{_FIELDS.get(name, name)}" if name else "engine"


#: vLLM's argument → the field of ours that has another name.
_FIELDS = {"tool_call_parser": "tool_parser", "enable_prefix_caching": "prefix_caching"}


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def load_vllm(installed: Installed) -> Vllm:
    """Import vLLM's names and check them. Takes seconds.

    Raises:
        VersionError: a module cannot be imported (chained), or a name or a member is missing.
    """
    names = {}
    for path, used in _USED.items():
        try:
            module = importlib.import_module(path)
        # Torch's extensions that do not fit raise OSError or RuntimeError when they are loaded.
        except (ImportError, OSError, RuntimeError) as error:
            raise broken_vllm(installed, error) from error
        for name, members in used.items():
            if not hasattr(module, name):
                raise incomplete_vllm(installed, f"{path}.{name}")
            names[name] = getattr(module, name)
            for member in members:
                if not _has(names[name], member):
                    raise incomplete_vllm(installed, f"{path}.{name}.{member}")
    return Vllm(installed, names)


def _has(owner: Any, member: str) -> bool:
    """Look for a method, a field, an argument of `__init__` or what that one sets."""
    if hasattr(owner, member):
        return True
    for fields in ("__dataclass_fields__", "__pydantic_fields__", "__struct_fields__"):
        if member in getattr(owner, fields, ()):
            return True
    made = inspect.unwrap(owner.__init__)
    if member in inspect.signature(made).parameters:
        return True
    return member in getattr(getattr(made, "__code__", None), "co_names", ())


def _as_words(action: Action, value: object) -> list[str]:
    """Return a value as the command line would have it."""
    flags = [flag for flag in action.option_strings if flag.startswith("--")]
    if isinstance(value, bool) and action.nargs == 0:
        if value:
            return flags[:1]
        optional = isinstance(action, BooleanOptionalAction)
        return [flag for flag in flags if flag.startswith("--no-")][:1] if optional else []
    if isinstance(value, list | tuple) and action.nargs in ("+", "*"):
        return [flags[0], *map(str, value)]
    text = json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)
    return [f"{flags[0]}={text}"]


class StepFigures:
    """Sums what vLLM tells of each engine step; gauges are those of the last step.

    A data-parallel engine has several cores: `index` tells them apart, the figures are of all.
    """

    def __init__(self) -> None:
        self._gauges: dict[int, tuple[int, int, float]] = {}
        self.prompt_tokens = 0
        self.generation_tokens = 0
        #: Sequences that reached their end: a request with n = 2 counts twice, an aborted one not.
        self.finished = 0
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def running(self) -> int:
        """Sequences in the last step's batch."""
        return sum(running for running, _, _ in self._gauges.values())

    @property
    def waiting(self) -> int:
        """Sequences that wait for a place in the batch."""
        return sum(waiting for _, waiting, _ in self._gauges.values())

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use; 0 before the first step, when none is."""
        return sum(usage for _, _, usage in self._gauges.values()) / max(1, len(self._gauges))

    def add(self, index: int, scheduler: Any, iteration: Any) -> None:
        """Take one step's figures; either part may be missing."""
        if scheduler is not None:
            waiting = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
            self._gauges[index] = (scheduler.num_running_reqs, waiting, scheduler.kv_cache_usage)
            prefix = scheduler.prefix_cache_stats
            if prefix is not None:
                self.prefix_queries += prefix.queries
                self.prefix_hits += prefix.hits
        if iteration is not None:
            self.prompt_tokens += iteration.num_prompt_tokens
            self.generation_tokens += iteration.num_generation_tokens
            self.preemptions += iteration.num_preempted_reqs
            self.finished += len(iteration.finished_requests)
