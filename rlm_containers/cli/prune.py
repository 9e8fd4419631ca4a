"""``rlm-containers prune``: removes what dead processes have left behind."""

from __future__ import annotations

import click

from rlm_containers.cli.command import (
    Command,
    ExitCode,
    answering_runtimes,
    json_option,
    print_json,
    runtimes_option,
)
from rlm_containers.cli.terminal import print_table, say, show_error


@click.command(
    cls=Command,
    examples=(
        ("On every engine that answers", "prune"),
        ("Only list what would be removed", "prune --dry-run"),
    ),
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@runtimes_option
@json_option
@click.pass_context
def command(ctx: click.Context, dry_run: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Remove what dead processes have left behind.

    That is containers, networks and workspaces. What belongs to living processes, other users or
    other machines stays, and so do named sessions. The exit code is 1 if something could not be
    removed.
    """
    from rlm_containers.container import prune

    pruned = prune(answering_runtimes(names).values(), dry_run=dry_run)
    kinds = {
        "container": pruned.containers,
        "network": pruned.networks,
        "workspace": pruned.workspaces,
    }
    if as_json:
        print_json(
            {
                **{f"{kind}s": found for kind, found in kinds.items()},
                "errors": [error.what for error in pruned.errors],
            }
        )
    elif any(kinds.values()):
        done = "would be removed" if dry_run else "removed"
        print_table(
            ("kind", "name", "result"),
            [(kind, name, done) for kind, found in kinds.items() for name in found],
        )
    else:
        say("nothing is left behind", "dim")
    for error in pruned.errors:
        show_error(error)
    if pruned.errors:
        ctx.exit(ExitCode.FAILED)
