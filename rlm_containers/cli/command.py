"""What commands share: help with examples, errors and exit codes, and common options."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import click

from rlm_containers.cli.terminal import say, show_error, show_log
from rlm_containers.errors import ContainersError, OptionError

if TYPE_CHECKING:
    from runtimes import Runtime

#: What an example shows, and the arguments of ``rlm-containers`` that do it.
Example = tuple[str, str]

_SANDBOX = "sandbox_option"


class ExitCode(IntEnum):
    """The program's exit codes, unless a cell or a signal decides."""

    OK = 0
    FAILED = 1
    USAGE = 2
    #: As of `docker run` and `podman run`: the command failed, not the program that it ran.
    NO_SANDBOX = 125
    INTERRUPTED = 130


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[Example]) -> None:
    if not examples:
        return
    with formatter.section("Examples"):
        for what, line in examples:
            formatter.write_text(f"{what}:")
            with formatter.indentation():
                # Never wrapped, so that it can be copied.
                indent = " " * formatter.current_indent
                formatter.write(f"{indent}rlm-containers {line}\n")


class Command(click.Command):
    """A command whose help has examples, and that reports errors.

    Args:
        examples: for its help.
        args, arguments: those of :class:`click.Command`.
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
                help="Print more about what is done; -vv also every call of the engine.",
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the sandbox's under a heading of their own."""
        own: list[tuple[str, str]] = []
        sandbox: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            # The usage line has the arguments.
            if record is not None and isinstance(parameter, click.Option):
                (sandbox if getattr(parameter, _SANDBOX, False) else own).append(record)
        for heading, records in (("Options", own), ("Options of the sandbox", sandbox)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, self.examples)

    def invoke(self, ctx: click.Context) -> Any:
        with _reporting_errors(ctx):
            return super().invoke(ctx)


def _show_log(ctx: click.Context, option: click.Parameter, verbosity: int) -> None:
    ctx.call_on_close(show_log(verbosity))


#: Maps the short names of commands in docker and podman to ours.
_ALIASES = {"ls": "list", "rm": "remove"}


class Group(click.Group):
    """A group of commands whose help has examples.

    Args:
        examples: for its help.
        args, arguments: those of :class:`click.Group`.
    """

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, self.examples)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command by its name, or by the short one that users of docker type."""
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))

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

runtimes_option = click.option(
    "--runtime",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this engine. May be given several times.",
)


def answering_runtimes(names: tuple[str, ...]) -> dict[str, Runtime]:
    """Return the engines that a command is about, by their names.

    Args:
        names: engines that must all answer; empty for all that do.

    Raises:
        EngineNotFoundError, EngineUnavailableError: a named engine does not answer, or none does.
    """
    from runtimes import get_runtime, runtime_names

    if names:
        return {name: get_runtime(name) for name in names}
    found = {}
    for name in runtime_names():
        try:
            found[name] = get_runtime(name)
        except ContainersError:
            continue
    if not found:
        get_runtime()  # raises an error that says what to do
    return found


@contextlib.contextmanager
def _reporting_errors(ctx: click.Context) -> Iterator[None]:
    """Turn this project's errors into messages and exit codes."""
    try:
        yield
    except ContainersError as error:
        if ctx.params.get("as_json"):
            print_json({"error": describe_error(error)})
        else:
            show_error(error)
        wrong_usage = isinstance(error, OptionError)
        ctx.exit(ExitCode.USAGE if wrong_usage else ExitCode.NO_SANDBOX)
    except KeyboardInterrupt:
        say("interrupted")
        ctx.exit(ExitCode.INTERRUPTED)


def describe_error(error: ContainersError) -> dict[str, str | None]:
    """Return an error as ``--json`` prints it."""
    return {
        "type": type(error).__name__,
        "message": error.what,
        "remedy": error.remedy or None,
        "container": error.container,
    }


def print_json(content: object) -> None:
    """Print an object as JSON, in which control characters from a container are escaped."""
    json.dump(content, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()
