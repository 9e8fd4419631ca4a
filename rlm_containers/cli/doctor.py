"""``rlm-containers doctor``: whether containers work here."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click

from rlm_containers.cli.command import Command, ExitCode, json_option, print_json
from rlm_containers.cli.terminal import activity, console
from runtimes.text import clean

if TYPE_CHECKING:
    from rlm_containers.doctor import Check, Diagnosis

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}
_PLAIN_MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "skipped"}


@click.command(
    cls=Command,
    examples=(
        ("All engines on this machine", "doctor"),
        ("One engine, which must work", "doctor --runtime podman"),
        ("In a script", "doctor --json"),
    ),
)
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="Check only this engine, and fail if it does not work. May be given several times.",
)
@click.option("--image", help="The image to try. [default: the configured one]")
@click.option("--pull", is_flag=True, help="Pull the image if it is missing.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, runtimes: tuple[str, ...], image: str | None, pull: bool, as_json: bool
) -> None:
    """Check whether sandboxes work here.

    What to do stands below each failure. For each engine it checks: whether it is found and
    answers, its version, whether it is rootless, SELinux, the image, the start of a container, a
    cell and its time, the workspace, whether limits are enforced, how llm_query() reaches this
    host, and whether everything is cleaned up.

    The exit code is 0 if sandboxes work, on every engine that was named or else on any, and 1
    otherwise.
    """
    from rlm_containers.doctor import diagnose

    if as_json:
        found = diagnose(runtimes, image=image, pull=pull)
        print_json(_describe(found))
        ctx.exit(ExitCode.OK if found.ok else ExitCode.FAILED)
    shown: list[str] = []
    with activity("checking") as show:

        def on_check(where: str, check: Check) -> None:
            if where not in shown:
                shown.append(where)
                _print_heading(where)
            _print_check(check)
            show(f"{where}: checking")

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
    if not console().is_terminal:
        sys.stdout.write(f"{where}\n")
    else:
        console().print(where, style="bold")


def _print_check(check: Check) -> None:
    """Print one line for the finding, and one below it for the remedy."""
    detail, remedy = clean(check.detail), clean(check.remedy)
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
