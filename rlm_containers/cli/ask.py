"""``rlm-containers ask``: a question to an RLM, whose cells run in a sandbox."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlm_containers.cli.cells import context_option, prepare_image, read_contexts
from rlm_containers.cli.command import Command, ExitCode, describe_error, json_option, print_json
from rlm_containers.cli.sandbox_options import given_options, sandbox_options
from rlm_containers.cli.terminal import OutputWriter, activity, say, show_error
from rlm_containers.errors import CompletionError

if TYPE_CHECKING:
    from rlm_containers.integrations.rlms import Trajectory, Turn

# Those of rlms, which may not be installed; a test compares them.
BACKENDS = (
    "openai",
    "portkey",
    "openrouter",
    "vercel",
    "vllm",
    "anthropic",
    "azure_openai",
    "gemini",
)


@click.command(
    cls=Command,
    examples=(
        (
            "With OpenAI's API and the key in OPENAI_API_KEY",
            "ask 'Who did it?' --context novel.txt --model gpt-5-mini",
        ),
        ("With your own server", "ask … --model qwen --base-url http://localhost:8000/v1"),
        (
            "With Anthropic's API, and a page that shows how it went",
            "ask … --backend anthropic --model NAME --report out.html",
        ),
        (
            "Several files, on Podman, without a network",
            "ask … --context a.txt --context b.txt --runtime podman --network none",
        ),
    ),
)
@click.argument("question")
@context_option
@click.option("--model", required=True, metavar="NAME", help="The root model.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="openai",
    show_default=True,
    help="The API that serves it.",
)
@click.option("--base-url", metavar="URL", help="Another server with the same API.")
@click.option(
    "--sub-model", metavar="NAME", help="Answers llm_query() in cells. [default: --model]"
)
@click.option("--sub-backend", type=click.Choice(BACKENDS), help="Its API. [default: --backend]")
@click.option("--sub-base-url", metavar="URL", help="Its server. [default: --base-url]")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write an HTML page that shows what was done.",
)
@click.option("--trace", is_flag=True, help="Show cells and their output on standard error.")
@click.option(
    "--max-iterations",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="The most turns.",
)
@click.option(
    "--max-depth",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How deep rlm_query() may recurse.",
)
@click.option(
    "--max-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up after this time.",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Give up after this many tokens.")
@click.option(
    "--max-budget",
    type=click.FloatRange(0, min_open=True),
    metavar="DOLLARS",
    help="Give up at this cost, if the backend reports costs.",
)
@click.option(
    "--max-errors", type=click.IntRange(1), help="Give up after this many failures in a row."
)
@json_option
@sandbox_options()
@click.pass_context
def command(ctx: click.Context, /, question: str, contexts: tuple[Path, ...], **given: Any) -> None:
    """Ask a recursive language model about texts of any length.

    The model writes Python that examines the variable `context` and calls llm_query() on parts of
    it. That Python runs in a sandbox. The answer goes to standard output, progress to standard
    error.

    API keys come from the environment only: ANTHROPIC_API_KEY, AZURE_OPENAI_API_KEY,
    GEMINI_API_KEY, OPENAI_API_KEY, OPENROUTER_API_KEY, PORTKEY_API_KEY, VLLM_API_KEY, and
    AI_GATEWAY_API_KEY for vercel.

    The exit code is 1 if there is no answer: the model failed, or a limit was reached.
    """
    try:
        from rlm_containers.integrations.rlms import Completion, Model
    except ImportError as error:
        raise click.UsageError(
            f"This needs rlms ({error}): pip install 'rlm-containers[rlms]'"
        ) from None
    from rlm_containers.options import configured_options

    report: Path | None = given["report"]
    if report is not None and not report.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no directory {report.parent}", param_hint="--report")
    context = read_contexts(contexts)
    progress = _Progress(given["trace"])
    completion = Completion(
        question,
        context,
        model=Model(name=given["model"], backend=given["backend"], base_url=given["base_url"]),
        sub_model=_sub_model(given),
        options=given_options(ctx),
        on_turn=progress.show_turn,
        **{name: given[name] for name in given if name.startswith("max_") and given[name]},
    )
    prepare_image(configured_options(given_options(ctx)))
    failure: CompletionError | None = None
    try:
        with activity(f"asking {given['model']}") as progress.show:
            completion.run()
    except CompletionError as error:
        failure = error
    finally:
        if report is not None:
            _write_report(completion.trajectory, report)
    trajectory = completion.trajectory
    if given["as_json"]:
        print_json(
            {**_describe(trajectory), **({"error": describe_error(failure)} if failure else {})}
        )
    elif failure is None:
        say(_summary(trajectory), "dim")
        _print_answer(trajectory.answer or "")
    else:
        show_error(failure)
        if failure.partial_answer:
            say("Its last message was:", "dim")
            _print_answer(failure.partial_answer)
    ctx.exit(ExitCode.OK if failure is None else ExitCode.FAILED)


def _sub_model(given: dict[str, Any]) -> Any:
    from rlm_containers.integrations.rlms import Model

    if not given["sub_model"]:
        if given["sub_backend"] or given["sub_base_url"]:
            raise click.UsageError("--sub-backend and --sub-base-url need a --sub-model.")
        return None
    other = given["sub_backend"] or given["backend"]
    inherited = given["base_url"] if other == given["backend"] else None
    return Model(
        name=given["sub_model"], backend=other, base_url=given["sub_base_url"] or inherited
    )


class _Progress:
    """Shows each turn as it ends.

    Args:
        trace: whether to show cells and their output as well.

    Attributes:
        show: sets the text beside the spinner.
    """

    def __init__(self, trace: bool) -> None:
        self._trace = trace
        self._turns = 0
        self.show: Callable[[str], None] = lambda text: None

    def show_turn(self, turn: Turn) -> None:
        self._turns += 1
        calls = sum(len(cell.calls) for cell in turn.cells)
        self.show(f"turn {self._turns + 1}")
        say(
            f"turn {self._turns}: {turn.seconds:.1f} s, cells: {len(turn.cells)}, calls: {calls}",
            "dim",
        )
        if self._trace:
            writer = OutputWriter(sys.stderr)
            for cell in turn.cells:
                writer.write("".join(f">>> {line}\n" for line in cell.code.splitlines()))
                for text in (cell.stdout, cell.stderr):
                    writer.write(text if not text or text.endswith("\n") else f"{text}\n")
                    writer.reset()


def _print_answer(answer: str) -> None:
    writer = OutputWriter(sys.stdout)
    writer.write(answer if answer.endswith("\n") else f"{answer}\n")
    writer.reset()


def _summary(trajectory: Trajectory) -> str:
    cells, calls = len(list(trajectory.cells)), len(list(trajectory.calls))
    tokens = sum(used.input_tokens + used.output_tokens for used in trajectory.usage)
    costs = [used.cost for used in trajectory.usage if used.cost is not None]
    cost = f", ${sum(costs):.4f}" if costs else ""
    return (
        f"{trajectory.seconds:.1f} s, turns: {len(trajectory.turns)}, cells: {cells}, "
        f"calls: {calls}, {tokens:,} tokens{cost}"
    )


def _write_report(trajectory: Trajectory, path: Path) -> None:
    from rlm_containers.integrations.rlms import write_report

    try:
        write_report(trajectory, path)
    except OSError as error:
        # Print the answer all the same: it has been paid for.
        say(f"The report {path} could not be written: {error.strerror}.", "bold red")
    else:
        say(f"report: {path}", "dim")


def _describe(trajectory: Trajectory) -> dict[str, Any]:
    import dataclasses

    return {
        "answer": trajectory.answer,
        "model": trajectory.model,
        "seconds": round(trajectory.seconds, 3),
        "turns": len(trajectory.turns),
        "cells": len(list(trajectory.cells)),
        "calls": len(list(trajectory.calls)),
        "usage": [dataclasses.asdict(used) for used in trajectory.usage],
    }
