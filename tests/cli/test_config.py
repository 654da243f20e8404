from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aibrix_ray.cli import app
from tests.config.files import QUICKSTART, make_file

Write = Callable[..., Path]


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    wide = {"COLUMNS": "200", "NO_COLOR": "1", **(env or {})}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=wide)


def row(result: Result, name: str) -> list[str]:
    found = [line.split() for line in result.stdout.splitlines() if line.startswith(f"{name} ")]
    assert len(found) == 1, result.stdout
    return found[0]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str, name: str = "file.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_check_says_ok_and_what_would_be_served() -> None:
    result = run("config", "check", QUICKSTART)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"OK: {QUICKSTART}")
    assert row(result, "gateway")[1] == "127.0.0.1:8000"
    assert row(result, "tiny")[1:] == ["tiny", "vllm", "CPU", "1", "to", "1"]


def test_check_prints_every_problem_on_a_line_of_its_own_and_exits_with_2(write: Write) -> None:
    file = write(make_file(gateway_args="{prot: 1}", group_args="{model: m, num_cpus: -1}"))
    result = run("config", "check", file, "--set", "gateway.per_node=0")
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.partition(": got")[0] for line in lines] == [
        "error: --set gateway.per_node (applications[0].args.per_node)",
        "error: applications[0].args.prot",
        "error: applications[1].args.num_cpus",
    ]
    assert "did you mean 'port'?" in lines[1]


@pytest.mark.parametrize(
    ("flag", "path"),
    [
        ("policy=least-requests", "gateway.user_config.routing.policy"),
        ("options={nonsense: 1}", "gateway.user_config.routing.options"),
    ],
)
def test_check_refuses_what_no_routing_policy_knows(flag: str, path: str) -> None:
    result = run("config", "check", QUICKSTART, "--set", f"gateway.user_config.routing.{flag}")
    assert result.exit_code == 2
    assert path in result.stderr
    assert "least-request" in result.stderr


def test_check_does_not_load_a_policy_by_import_path() -> None:
    flag = "gateway.user_config.routing.policy=not_installed.here:Policy"
    assert run("config", "check", QUICKSTART, "--set", flag).exit_code == 0


@pytest.mark.parametrize("form", [["--set=gateway.port=9000"], ["--set", "gateway.port=9000"]])
def test_a_flag_may_be_written_with_an_equals_sign_or_a_space(form: list[str]) -> None:
    result = run("config", "show", QUICKSTART, *form)
    assert result.exit_code == 0
    assert row(result, "gateway.port") == ["gateway.port", "9000", "flag"]


def test_show_tells_the_source_of_each_value() -> None:
    result = run(
        "config", "show", QUICKSTART, "--set", "tiny.replicas.min=0",
        env={"AIBRIX_RAY__TINY__ENGINE__PREFIX_CACHING": "false"},
    )  # fmt: skip
    assert result.exit_code == 0
    assert row(result, "tiny.replicas.min")[1:] == ["0", "flag"]
    assert row(result, "tiny.engine.prefix_caching")[1:] == ["false", "env"]
    assert row(result, "tiny.engine.max_num_seqs")[1:] == ["16", "file"]
    assert row(result, "tiny.num_cpus")[1:] == ["1.0", "default"]


def test_show_masks_secrets_and_prints_markup_as_it_is(write: Write) -> None:
    args = "{model: '[red]m', env: {HF_TOKEN: hush, TOKENIZERS_PARALLELISM: '0'}}"
    result = run("config", "show", write(make_file(group_args=args)))
    assert "hush" not in result.stdout
    assert row(result, "tiny.env.HF_TOKEN")[1] == '"********"'
    assert row(result, "tiny.env.TOKENIZERS_PARALLELISM")[1] == '"0"'
    assert row(result, "tiny.model")[1] == '"[red]m"'


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_variable_that_matches_nothing_is_an_error(command: str) -> None:
    result = run("config", command, QUICKSTART, env={"AIBRIX_RAY__GATEWY__PORT": "1"})
    assert result.exit_code == 2
    assert "error: AIBRIX_RAY__GATEWY__PORT" in result.stderr


@pytest.mark.parametrize(
    ("content", "told"), [(None, "No such file"), (b"\xff\xfe\x00", "UTF-8"), (b"", "got nothing")]
)
def test_an_unreadable_file_is_one_line_and_no_traceback(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "file.yaml"
    if content is not None:
        file.write_bytes(content)
    for command, *others in (["check"], ["show"], ["diff", QUICKSTART]):
        result = run("config", str(command), file, *others)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert told in result.stderr


def test_schema_prints_json() -> None:
    result = run("config", "schema")
    assert result.exit_code == 0
    assert "GroupArgs" in json.loads(result.stdout)["$defs"]


def test_diff_tells_what_restarts_and_why(write: Write) -> None:
    args = "{model: tiny, env: {API_KEY: a}}"
    old = write(make_file(group_args=args), "old.yaml")
    new = write(make_file(group_args=args.replace("KEY: a", "KEY: b, B: c")), "new.yaml")
    result = run("config", "diff", old, new)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "gateway: unchanged",
        "tiny: restarted",
        '  args.env.API_KEY: "********" → "********"',
        '  args.env.B: nothing → "c"',
        "  (old replicas stop before new ones start; max_surge_percent: 100 turns that round)",
    ]


def test_diff_of_the_same_file_says_that_nothing_changes() -> None:
    assert run("config", "diff", QUICKSTART, QUICKSTART).stdout.endswith("nothing would change\n")


def test_diff_names_the_file_that_is_wrong(write: Write) -> None:
    bad = write(make_file(gateway_args="{port: 0}"))
    result = run("config", "diff", QUICKSTART, bad)
    assert result.exit_code == 2
    assert f"error: {bad}: applications[0].args.port" in result.stderr


def test_diff_says_when_all_of_serve_has_to_restart(write: Write) -> None:
    old = write("proxy_location: HeadOnly\napplications: []\n", "old.yaml")
    new = write("applications: []\n", "new.yaml")
    result = run("config", "diff", old, new)
    assert 'Serve: proxy_location: "HeadOnly" → nothing' in result.stdout
    assert "serve shutdown" in result.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["config", "--help"], ["config", "show", "--help"]]
)
def test_help_tells_the_precedence(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    words = " ".join(result.stdout.replace("│", " ").split())
    assert "flag > environment" in words
    assert "file > default" in words


@pytest.mark.parametrize("arguments", [["bogus"], ["config", "bogus"], ["config", "check"]])
def test_a_wrong_command_is_a_usage_error(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_help_starts_neither_ray_nor_vllm() -> None:
    code = (
        "import sys\n"
        "from aibrix_ray.cli import main\n"
        "sys.argv = ['aibrix-ray', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('ray', 'vllm', 'torch') if name in sys.modules])\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == "[]"
