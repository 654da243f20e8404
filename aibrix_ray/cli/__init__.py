"""The command line: `aibrix-ray COMMAND …`. One command a module, loaded when it is called.

A command module exports `register(app: typer.Typer) -> None` and imports Ray or vLLM only inside
its functions, so that `--help` answers at once. An error of the package is one red line on stderr
and exit code 2; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import typer
import typer.core
import typer.main

from aibrix_ray.config import PRECEDENCE
from aibrix_ray.errors import AibrixRayError

#: modules of this folder, in the order of `--help`; one that is not there (yet) is left out.
COMMANDS = (
    "serve",
    "status",
    "config",
    "gateway",
    "chat",
    "kube",
    "dashboards",
    "keys",
    "tenants",
    "usage",
)

_USAGE_ERROR = 2


class Commands(typer.core.TyperGroup):
    """Loads the module of the command that is called; `--help` loads them all."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of `COMMANDS`."""
        for name in COMMANDS:
            self._load(name)
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, or None."""
        if cmd_name in COMMANDS:
            self._load(cmd_name)
        if cmd_name not in self.commands:
            self.list_commands(ctx)  # a module may register a command of another name
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of ours becomes one line and exit code 2."""
        try:
            return super().invoke(ctx)
        except AibrixRayError as error:
            print_error(error)
            raise typer.Exit(_USAGE_ERROR) from error

    def _load(self, name: str) -> None:
        module_name = f"{__name__}.{name}"
        # Only a module that is missing is left out: one that is broken says so.
        if name in self.commands or importlib.util.find_spec(module_name) is None:
            return
        part = typer.Typer()
        importlib.import_module(module_name).register(part)
        for command, loaded in typer.main.get_group(part).commands.items():
            self.commands.setdefault(command, loaded)


app = typer.Typer(
    cls=Commands,
    name="aibrix-ray",
    help=f"Serve large language models on Ray. {PRECEDENCE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Keep `app` a group of commands, even with a single one."""


def print_error(error: AibrixRayError) -> None:
    """Print the error as one line on stderr, red where that is a terminal."""
    line = " ".join(str(error).split("\n"))
    typer.secho(f"error: {line}", fg=typer.colors.RED, err=True)


def main() -> None:
    """Run the command line; the entry point of the package."""
    app()
