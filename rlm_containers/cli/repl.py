"""``rlm-containers repl``: an interactive prompt in a sandbox."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlm_containers.cli.cells import (
    CellPrinter,
    Figures,
    context_option,
    figures_option,
    read_contexts,
    run_cell,
    start_sandbox,
)
from rlm_containers.cli.command import Command
from rlm_containers.cli.sandbox_options import given_options, sandbox_options
from rlm_containers.cli.terminal import activity, print_table, say, show_error
from rlm_containers.errors import ContainersError
from runtimes.text import clean

if TYPE_CHECKING:
    from rlm_containers import Sandbox
    from rlm_containers.cli.prompt import Prompt

_HELP = """\
Python runs in the sandbox, cell by cell. Enter runs a complete cell, and otherwise starts a new
line; Alt-Enter runs the cell in any case. The arrow keys bring back earlier cells, Ctrl-R searches
them, Tab completes variables and their attributes. Ctrl-C interrupts a cell, Ctrl-D quits.

  :vars             list the variables and their values in short
  :unsaved          list the variables that would be lost if a cell killed the interpreter
  :load NAME FILE   bind a variable to the text of a file on this machine
  :help             show this help
  :quit             quit, like Ctrl-D"""


@click.command(
    cls=Command,
    examples=(
        ("A prompt", "repl"),
        ("With a text to look into", "repl --context book.txt"),
        ("On Podman, with another Python", "repl --runtime podman --image python:3.13-slim"),
    ),
)
@context_option
@figures_option
@sandbox_options(without=("pool",))
@click.pass_context
def command(ctx: click.Context, contexts: tuple[Path, ...], figures: Path | None) -> None:
    """Open an interactive Python prompt in a sandbox.

    Variables live on from cell to cell, even when a cell kills the interpreter. What you type is
    kept in a history for the next time. The exit code is 0, or the one that a cell gave to
    sys.exit().
    """
    from rlm_containers.cli.prompt import Prompt

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "This needs a terminal. `rlm-containers run -` runs a program from standard input."
        )
    context = read_contexts(contexts)
    with start_sandbox(given_options(ctx), context) as box:
        say(
            f"Python {box.python_version} in {box.options.image}. :help shows help, Ctrl-D quits.",
            "dim",
        )
        ctx.exit(_run_cells(box, Prompt(box), Figures(box, figures)))


def _run_cells(box: Sandbox, prompt: Prompt, figures: Figures) -> int:
    """Read and run cells until the user quits, and return the exit code."""
    number = 1
    while True:
        text = prompt.read(number)
        if text is None:
            return 0
        word, _, rest = text.strip().partition(" ")
        if word in (":quit", ":q"):
            return 0
        if word.startswith(":"):
            _run_command(box, prompt, word, rest)
        elif text.strip():
            printer = CellPrinter()
            result = run_cell(box, text, printer, display=True, name=f"cell {number}")
            number += 1
            printer.end_line()
            printer.finish(result)
            figures.report(result)
            prompt.variables = dict(result.locals)
            if result.status == "exit":
                return result.exit_code


def _run_command(box: Sandbox, prompt: Prompt, word: str, rest: str) -> None:
    """Run a line that begins with a colon."""
    if word == ":help":
        say(_HELP)
    elif word == ":vars":
        print_table(("name", "value"), list(prompt.variables.items()))
    elif word == ":unsaved":
        unsaved = [(variable.name, variable.type, variable.reason) for variable in box.unsaved]
        print_table(("name", "type", "why"), unsaved)
    elif word == ":load" and len(rest.split(maxsplit=1)) == 2:
        name, file = rest.split(maxsplit=1)
        try:
            value = read_contexts([Path(os.path.expanduser(file))])
            assert value is not None
            with activity("sending the text"):
                box.load(name, value)
            prompt.variables = {**prompt.variables, name: f"{len(value):,} characters"}
        except ContainersError as error:
            show_error(error)
        except click.BadParameter as error:
            say(error.message)
    else:
        say(f"There is no {clean(word)} of that form. :help lists the commands.")
