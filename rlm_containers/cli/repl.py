"""``rlm-containers repl``: an interactive prompt in a sandbox."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlm_containers.cli.command import Command
from rlm_containers.cli.contexts import context_option, read_contexts
from rlm_containers.cli.figures import Figures, figures_option
from rlm_containers.cli.sandbox_options import given_options, sandbox_options

if TYPE_CHECKING:
    from rlm_containers import Sandbox
    from rlm_containers.cli.prompt import Prompt

_HELP = """\
Python runs in the sandbox, cell by cell. Enter runs a cell that is complete, and goes on with the
next line of one that is not; Alt-Enter runs it in any case. The arrows bring back earlier cells,
Tab completes the names of variables and their attributes, Ctrl-R searches. Ctrl-C interrupts a
cell, Ctrl-D ends.

  :vars             the variables, with short forms of their values
  :unsaved          the variables that would be lost if a cell killed the interpreter
  :load NAME FILE   bind a variable to the text of a file of this machine
  :help             this
  :quit             end, as Ctrl-D"""


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
@sandbox_options()
@click.pass_context
def command(ctx: click.Context, contexts: tuple[Path, ...], figures: Path | None) -> None:
    """Type Python and see what it does, in a sandbox.

    Variables live on from cell to cell, and when a cell kills the interpreter. The history of what
    was typed is kept for the next time. Ends with 0, or with what a cell gave to sys.exit().
    """
    from rlm_containers.cli.messages import say
    from rlm_containers.cli.prompt import Prompt
    from rlm_containers.cli.start import start_sandbox

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "This needs a terminal. `rlm-containers run -` takes a program from standard input."
        )
    context = read_contexts(contexts)
    options: dict[str, Any] = given_options(ctx)
    with start_sandbox(options, context) as box:
        say(f"Python {box.python_version} in {box.options.image}. :help helps, Ctrl-D ends.", "dim")
        ctx.exit(_converse(box, Prompt(box), Figures(box, figures)))


def _converse(box: Sandbox, prompt: Prompt, figures: Figures) -> int:
    """Read and run cells until the end; the exit code."""
    from rlm_containers.cli.cells import CellPrinter, run_cell

    number = 1
    while True:
        text = prompt.read(number)
        if text is None:
            return 0
        word, _, rest = text.strip().partition(" ")
        if word in (":quit", ":q"):
            return 0
        if word.startswith(":"):
            _obey(box, prompt, word, rest)
        elif text.strip():
            printer = CellPrinter()
            result = run_cell(box, text, printer, display=True, name=f"cell {number}")
            number += 1
            printer.end_line()
            printer.finish(result)
            figures.tell(result)
            prompt.variables = dict(result.locals)
            if result.status == "exit":
                return result.exit_code


def _obey(box: Sandbox, prompt: Prompt, word: str, rest: str) -> None:
    """Do what a line says that is no Python."""
    from rlm_containers.cli.messages import activity, say, show_error
    from rlm_containers.cli.terminal import harmless, print_table
    from rlm_containers.errors import ContainersError

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
        say(f"There is no {harmless(word)} of that form. :help shows what there is.")
