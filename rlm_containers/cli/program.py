"""The program itself: which commands there are."""

from __future__ import annotations

from importlib import import_module

import click

from rlm_containers import __version__
from rlm_containers.cli.command import Command, Group

#: Each is a module of this package with the command's name, and has the command as ``command``.
COMMANDS = (
    "run",
    "repl",
    "ask",
    "doctor",
    "ps",
    "prune",
    "images",
    "sessions",
    "config",
    "completion",
)


class Program(Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = import_module(f"rlm_containers.cli.{cmd_name}").command
        assert isinstance(found, Command | Group)
        return found


@click.group(
    cls=Program,
    examples=(
        ("See whether containers work here", "doctor"),
        ("Run a cell, and end with its exit status", "run -c 'print(6 * 7)'"),
        ("Try things out", "repl"),
        ("Ask about a long text", "ask 'Who did it?' --context novel.txt --model gpt-5-mini"),
    ),
)
@click.version_option(__version__, message="rlm-containers %(version)s")
def program() -> None:
    """Container sandboxes for recursive language models, on docker and podman.

    Each command has help of its own: `rlm-containers COMMAND --help`. Exit codes: 0 all is well, 1
    it failed, 2 wrong usage, 125 there was no sandbox to be had, 130 interrupted; `run` ends with
    the exit code of the cell.
    """
