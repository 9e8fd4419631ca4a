"""``rlm-containers exec``: a command in a sandbox that another process runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from rlm_containers.cli.command import Command, answering_runtimes, runtimes_option

if TYPE_CHECKING:
    from runtimes import Runtime


@click.command(
    cls=Command,
    context_settings={"allow_interspersed_args": False},
    examples=(
        ("What is in the workspace of a session that runs", "exec work -- ls -l"),
        ("A shell in a container that `ps` lists", "exec rlm-0123456789ab -- sh"),
    ),
)
@runtimes_option
@click.argument("name", metavar="SESSION-OR-CONTAINER")
@click.argument("arguments", metavar="-- COMMAND...", nargs=-1, required=True)
def command(names: tuple[str, ...], name: str, arguments: tuple[str, ...]) -> None:
    """Run a command in a sandbox that another process of yours runs.

    It runs beside the cells, with their user and working directory, by `exec` of the engine. It has
    the environment of the container, without the variables that were given to the sandbox as
    `env`: these never leave the process that holds it. The exit code is the command's; 125 means
    that there is no such sandbox.
    """
    if arguments[0] == "--":
        arguments = arguments[1:]
    if not arguments:
        raise click.UsageError("No command is given.")
    runtime, container = _find(names, name)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    client = runtime.exec_command(container, arguments, tty=terminal)
    sys.stdout.flush()
    # The client takes the place of this process: it gets its signals, and its exit code counts.
    os.execvp(client[0], client)  # noqa: S606 - there is nothing for a shell to do


def _find(names: tuple[str, ...], name: str) -> tuple[Runtime, str]:
    """Return the engine and the container of a sandbox of this user.

    Raises:
        SandboxClosedError: there is none of that name.
    """
    from rlm_containers.errors import SandboxClosedError
    from rlm_containers.state import LABEL, Owner
    from runtimes.text import brief

    for runtime in answering_runtimes(names).values():
        for record in runtime.find({LABEL: ""}):
            owner = Owner.from_labels(record.labels)
            if (
                owner is not None
                and owner.is_mine()
                and record.running
                and name in (record.name, record.id, owner.session)
            ):
                return runtime, record.name
    raise SandboxClosedError(
        f"No sandbox of yours that runs has the session or the container {brief(name)}.",
        remedy="`rlm-containers ps` lists the containers.",
    )
