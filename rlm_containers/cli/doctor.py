"""``rlm-containers doctor``: whether containers work here."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from rlm_containers.cli.command import Command, ExitCode, json_option, print_json

if TYPE_CHECKING:
    from rlm_containers.doctor import Check, Diagnosis

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}
_PLAIN_MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "skipped"}


@click.command(
    cls=Command,
    examples=(
        ("Everything that may be here", "doctor"),
        ("One engine, which has to work", "doctor --runtime podman"),
        ("In a script", "doctor --json"),
    ),
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="Look at this engine only, and fail if it does not work; repeatable.",
)
@click.option("--image", help="What to try it with. [default: as it is configured]")
@click.option("--pull", is_flag=True, help="Fetch the image where it is not there yet.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, runtimes: tuple[str, ...], image: str | None, pull: bool, as_json: bool
) -> None:
    """See whether containers work here, and what to do if they do not.

    Of each engine: whether it is found and answers, its version, whether it is rootless, SELinux,
    the image, the start of a container, a cell and its time, the workspace, whether limits are
    enforced, how llm_query() gets to this host, and whether all is cleaned up.

    Ends with 0 if sandboxes work: on every engine that was named, or else on any. Else with 1.
    """
    from rlm_containers.cli.messages import activity
    from rlm_containers.doctor import diagnose

    if as_json:
        found = diagnose(runtimes, image=image, pull=pull)
        print_json(_describe(found))
        ctx.exit(ExitCode.OK if found.ok else ExitCode.FAILED)
    shown: list[str] = []
    with activity("looking") as show:

        def on_check(where: str, check: Check) -> None:
            if where not in shown:
                shown.append(where)
                _print_heading(where)
            _print_check(check)
            show(f"{where}: looking")

        found = diagnose(runtimes, image=image, pull=pull, on_check=on_check)
    _print_verdict(found)
    ctx.exit(ExitCode.OK if found.ok else ExitCode.FAILED)


def _describe(found: Diagnosis) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "host": [dataclasses.asdict(check) for check in found.host],
        "engines": [
            {
                "runtime": engine.runtime,
                "ok": engine.ok,
                "checks": [dataclasses.asdict(check) for check in engine.checks],
            }
            for engine in found.engines
        ],
    }


def _print_heading(where: str) -> None:
    from rlm_containers.cli.terminal import console

    if not console().is_terminal:
        sys.stdout.write(f"{where}\n")
    else:
        console().print(where, style="bold")


def _print_check(check: Check) -> None:
    """A line for what was found, and one below it for what to do."""
    from rlm_containers.cli.terminal import console, harmless

    detail, remedy = harmless(check.detail), harmless(check.remedy)
    if not console().is_terminal or console().encoding != "utf-8":
        sys.stdout.write(f"  {_PLAIN_MARKS[check.status]:8} {check.name:10} {detail}\n")
        if remedy:
            sys.stdout.write(f"{'':11}{'':10} {remedy}\n")
        sys.stdout.flush()
        return
    from rich.text import Text

    mark, style = _MARKS.get(check.status, ("–", "dim"))
    console().print(Text.assemble("  ", (mark, style), f" {check.name:10} ", (detail, "default")))
    if remedy:
        console().print(Text.assemble("    ", " " * 10, " → ", (remedy, style)))


def _print_verdict(found: Diagnosis) -> None:
    from rlm_containers.cli.terminal import console

    present = [engine for engine in found.engines if engine.installed or found.named]
    groups = (
        ("Sandboxes work on", [engine.runtime for engine in present if engine.tried and engine.ok]),
        ("Not tried", [engine.runtime for engine in present if engine.ok and not engine.tried]),
        ("They do not work on", [engine.runtime for engine in present if not engine.ok]),
    )
    text = " ".join(f"{what}: {', '.join(names)}." for what, names in groups if names)
    text = text or "There is no engine here."
    if console().is_terminal:
        console().print(text, style="bold green" if found.ok else "bold red")
    else:
        sys.stdout.write(f"{text}\n")
