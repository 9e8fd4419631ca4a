"""The program: its list of commands, and shell completion."""

from __future__ import annotations

from importlib import import_module

import click

from rlm_containers import __version__
from rlm_containers.cli.command import Command, Group

#: The commands. All but the last are modules of this package, whose ``command`` is the command.
COMMANDS = (
    "run",
    "repl",
    "ask",
    "doctor",
    "ps",
    "exec",
    "prune",
    "images",
    "sessions",
    "config",
    "completion",
)

_NAME = "rlm-containers"


class Program(Group):
    """Imports a command's module when it is used, so that help and completion are quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = "ps" if cmd_name == "ls" else cmd_name
        if cmd_name not in COMMANDS:
            return None
        if cmd_name == "completion":
            return completion
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
@click.version_option(__version__, message=f"{_NAME} %(version)s")
def program() -> None:
    """Container sandboxes for recursive language models, on docker, podman and Kubernetes.

    Each command has its own help: `rlm-containers COMMAND --help`. Exit codes: 0 success, 1
    failure, 2 wrong usage, 125 no sandbox could be started or it was lost, 130 interrupted. `run`
    ends with the exit code of the cell.
    """


@click.command(
    "completion",
    cls=Command,
    examples=(
        ("bash, in ~/.bashrc", 'completion bash    # eval "$(rlm-containers completion bash)"'),
        ("zsh, in ~/.zshrc", 'completion zsh     # eval "$(rlm-containers completion zsh)"'),
        ("fish", "completion fish > ~/.config/fish/completions/rlm-containers.fish"),
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script.

    It completes commands, options and the values of options.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(program, {}, _NAME, "_RLM_CONTAINERS_COMPLETE").source())
