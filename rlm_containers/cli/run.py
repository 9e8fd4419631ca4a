"""``rlm-containers run``: one cell in a sandbox."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rlm_containers.cli.cells import (
    CellPrinter,
    Figures,
    context_option,
    describe_result,
    figures_option,
    read_contexts,
    run_cell,
    start_sandbox,
)
from rlm_containers.cli.command import Command, json_option, print_json
from rlm_containers.cli.sandbox_options import given_options, sandbox_options


@click.command(
    cls=Command,
    context_settings={"allow_interspersed_args": False},
    examples=(
        ("A line of Python", "run -c 'print(6 * 7)'"),
        ("A program, with arguments for its sys.argv", "run program.py one two"),
        (
            "From standard input, on Podman, without a network",
            "run --runtime podman --network none -",
        ),
        ("With a text to look into", "run --context book.txt -c 'print(len(context))'"),
        ("For another program", "run --json -c 'x = 1'"),
    ),
)
@click.option("-c", "--code", metavar="CODE", help="Python source. Its arguments follow.")
@context_option
@figures_option
@json_option
@sandbox_options(without=("pool",))
@click.argument("arguments", metavar="[FILE | -] [ARGUMENT]...", nargs=-1)
@click.pass_context
def command(
    ctx: click.Context,
    code: str | None,
    contexts: tuple[Path, ...],
    figures: Path | None,
    as_json: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run Python in a sandbox, once.

    Output is printed as it comes. The exit code is the one that `python` would end with: 1 after an
    exception, the number given to sys.exit(), 130 after Ctrl-C, 137 when the interpreter was
    killed. 125 means that no sandbox could be started or that it was lost. With --json the whole
    result is one object.
    """
    name, code = _source(code, arguments)
    if name == "-" and Path("-") in contexts:
        raise click.UsageError("Standard input cannot be both the program and its context.")
    context = read_contexts(contexts)
    printer = None if as_json else CellPrinter()
    with start_sandbox(given_options(ctx), context) as box:
        if len(arguments) > 1 or (arguments and name == "-c"):
            argv = ["-c", *arguments] if name == "-c" else list(arguments)
            box.run_setup(f"__import__('sys').argv[:] = {argv!r}")
        result = run_cell(box, code, printer, name=Path(name).name)
        fetcher = Figures(box, figures)
        if printer is None:
            print_json({**describe_result(result), "artifacts": fetcher.fetch(result)})
        else:
            printer.finish(result)
            fetcher.report(result)
    ctx.exit(result.exit_code)


def _source(code: str | None, arguments: tuple[str, ...]) -> tuple[str, str]:
    """Return the program's name and its source."""
    if code is not None:
        return "-c", code
    if not arguments and sys.stdin.isatty():
        raise click.UsageError(
            "There is nothing to run. Name a FILE, give -c CODE, or - for standard input."
        )
    name = arguments[0] if arguments else "-"
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return name, _decoded(raw)
    except OSError as error:
        raise click.UsageError(f"{name} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, SyntaxError, LookupError) as error:
        raise click.UsageError(f"{name} is no Python source: {error}.") from None


def _decoded(raw: bytes) -> str:
    """Decode source by the encoding that it declares, as Python does."""
    import io
    import tokenize

    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding)
