from __future__ import annotations

import subprocess
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import typer
from typer.testing import CliRunner

from aibrix_ray import cli
from aibrix_ray.errors import AibrixRayError


def make_app(module: types.ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """Return a command line whose only command is `probe`, which `module` registers."""
    monkeypatch.setattr(cli, "COMMANDS", ("probe",))
    if module is not None:
        name = "aibrix_ray.cli.probe"
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    app = typer.Typer(cls=cli.Commands)
    app.callback()(lambda: None)
    return app


def make_module(error: Exception) -> types.ModuleType:
    def register(app: typer.Typer) -> None:
        @app.command()
        def probe() -> None:
            raise error

    module = types.ModuleType("probe")
    module.register = register  # type: ignore[attr-defined]
    return module


def test_an_error_of_the_package_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = make_app(make_module(AibrixRayError("first\nsecond")), monkeypatch)
    result = CliRunner().invoke(app, ["probe"])
    assert (result.exit_code, result.stderr) == (2, "error: first second\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(make_module(KeyError("x")), monkeypatch)
    assert isinstance(CliRunner().invoke(app, ["probe"]).exception, KeyError)


def test_a_command_that_is_not_there_breaks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(None, monkeypatch)
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    assert CliRunner().invoke(app, ["probe"]).exit_code == 2


def test_a_command_that_cannot_be_loaded_is_not_taken_for_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = make_app(types.ModuleType("probe"), monkeypatch)  # without `register`
    assert isinstance(CliRunner().invoke(app, ["probe"]).exception, AttributeError)


def test_only_the_module_of_the_called_command_is_loaded() -> None:
    code = (
        "import sys\n"
        "from aibrix_ray.cli import main\n"
        "sys.argv = ['aibrix-ray', 'config', 'schema']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('aibrix_ray.cli.')])\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == "['aibrix_ray.cli.config']"
