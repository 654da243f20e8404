"""The one file that touches vLLM's modules, which move between releases.

`load_vllm` imports every name that the engine is built on and checks that each still has the
members that are used; what is missing is named together with vLLM's version. Imports nothing of
vLLM before that, because vLLM and torch read the environment when they are imported.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import json
import re
from argparse import Action, BooleanOptionalAction, Namespace
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from aibrix_ray.asgi import AsgiApp
from aibrix_ray.engines.meta import record_usage
from aibrix_ray.engines.versions import Installed, broken_vllm, incomplete_vllm
from aibrix_ray.errors import ConfigError

#: What is used, by the module that holds it: name → the members that are used of it.
_USED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vllm.v1.engine.async_llm": {
        "AsyncLLM": (
            *("from_engine_args", "generate", "encode", "check_health", "shutdown"),
            *("get_supported_tasks", "reset_mm_cache"),
        )
    },
    "vllm.engine.arg_utils": {"AsyncEngineArgs": ("from_cli_args", "create_engine_config")},
    "vllm.entrypoints.openai.api_server": {"build_app": (), "init_app_state": ()},
    "vllm.entrypoints.launchers.cli_args": {
        "make_arg_parser": (),
        "validate_parsed_serve_args": (),
    },
    "vllm.utils.argparse_utils": {"FlexibleArgumentParser": ("error", "parse_args")},
    "vllm.tool_parsers": {"ToolParserManager": ("list_registered", "import_tool_parser")},
    "vllm.reasoning": {"ReasoningParserManager": ("list_registered", "import_reasoning_parser")},
    "vllm.sampling_params": {"RequestOutputKind": ("DELTA",)},
    "vllm.outputs": {
        "RequestOutput": ("prompt_token_ids", "num_cached_tokens", "outputs", "finished"),
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

#: A beam search asks the engine once a beam and token; these calls are no answers of their own.
_BEAM = "-beam-"


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
        client = _metered(self.names["AsyncLLM"], delta=self.names["RequestOutputKind"].DELTA)
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
        for serving in ("openai_serving_chat", "openai_serving_completion"):
            _meter_beam_search(getattr(app.state, serving, None))
        built: AsgiApp = app
        return built

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
    """Look for a method, a dataclass field, an argument of `__init__` or what that one sets."""
    if hasattr(owner, member) or member in getattr(owner, "__dataclass_fields__", ()):
        return True
    parameters = inspect.signature(owner.__init__).parameters
    return member in parameters or (len(parameters) == 1 and hasattr(owner(), member))


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


def _metered(base: Any, *, delta: Any) -> Any:
    """Return vLLM's client class, which reports usage within each request's context."""

    class MeteredLLM(base):  # type: ignore[misc]
        """vLLM's client; tells the private meta channel what each call used."""

        async def generate(
            self, prompt: Any, params: Any, request_id: str, **options: Any
        ) -> AsyncIterator[Any]:
            """Generate as vLLM does."""
            outputs = super().generate(prompt, params, request_id, **options)
            is_answer = _BEAM not in request_id
            meter = UsageMeter(delta=params.output_kind == delta) if is_answer else None
            # Closing the inner generator is what aborts the request in the engine.
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    if meter is not None:
                        meter.see(output)
                    yield output

        async def encode(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
            """Encode as vLLM does."""
            meter = UsageMeter(delta=False)
            async with contextlib.aclosing(super().encode(*args, **options)) as outputs:
                async for output in outputs:
                    meter.see_prompt(output)
                    yield output

    return MeteredLLM


def _meter_beam_search(serving: Any) -> None:
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
