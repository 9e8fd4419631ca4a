"""What all commands have in common: help with examples, ``--verbose``, errors and exit codes."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import click

from rlm_containers.cli import messages
from rlm_containers.errors import ContainersError, OptionError

#: What a command is good for, and what to write behind ``rlm-containers``.
Example = tuple[str, str]

_SANDBOX = "sandbox_option"


class ExitCode(IntEnum):
    """What the program ends with, unless a cell or a signal decides it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    #: As `docker run` and `podman run` have it: the command is at fault and not what it ran.
    NO_SANDBOX = 125
    INTERRUPTED = 130


class _WithExamples:
    """The parts of help that click does not have."""

    examples: Sequence[Example]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.examples:
            return
        with formatter.section("Examples"):
            for what, line in self.examples:
                formatter.write_text(f"{what}:")
                with formatter.indentation():
                    # Never wrapped, so that it can be copied.
                    indent = " " * formatter.current_indent
                    formatter.write(f"{indent}rlm-containers {line}\n")


class Command(_WithExamples, click.Command):
    """A command.

    Args:
        examples: for its help.
        arguments: those of :class:`click.Command`.
    """

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.examples = examples
        self.params.append(
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                callback=_show_log,
                help="Say more of what is done; -vv also every call of the engine.",
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first, then those of the sandbox under their own heading."""
        own: list[tuple[str, str]] = []
        sandbox: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # Arguments are in the line on usage.
            if record is not None and isinstance(parameter, click.Option):
                (sandbox if getattr(parameter, _SANDBOX, False) else own).append(record)
        for heading, records in (("Options", own), ("Options of the sandbox", sandbox)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        with _failures(ctx):
            return super().invoke(ctx)


def _show_log(ctx: click.Context, option: click.Parameter, verbosity: int) -> None:
    ctx.call_on_close(messages.show_log(verbosity))


class Group(_WithExamples, click.Group):
    """A group of commands.

    Args:
        examples: for its help.
        arguments: those of :class:`click.Group`.
    """

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.examples = examples

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near or "mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def _failures(ctx: click.Context) -> Iterator[None]:
    """Errors of this project as messages and exit codes."""
    try:
        yield
    except ContainersError as error:
        if ctx.params.get("as_json"):
            print_json({"error": describe_error(error)})
        else:
            messages.show_error(error)
        wrong_usage = isinstance(error, OptionError)
        ctx.exit(ExitCode.USAGE if wrong_usage else ExitCode.NO_SANDBOX)
    except KeyboardInterrupt:
        messages.say("interrupted")
        ctx.exit(ExitCode.INTERRUPTED)


def describe_error(error: ContainersError) -> dict[str, str | None]:
    """An error as JSON has it."""
    return {
        "type": type(error).__name__,
        "message": error.what,
        "remedy": error.remedy or None,
        "container": error.container,
    }


def print_json(content: object) -> None:
    """Print an object. Control characters of a container's are escaped in it."""
    json.dump(content, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()
