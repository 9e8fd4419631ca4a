"""``rlm-containers prune``: removes what owners that are gone have left."""

from __future__ import annotations

import click

from rlm_containers.cli.command import Command, json_option, print_json
from rlm_containers.cli.engines import answering, runtimes_option


@click.command(
    cls=Command,
    examples=(
        ("On every engine that answers", "prune"),
        ("Only look", "prune --dry-run"),
    ),
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@runtimes_option
@json_option
@click.pass_context
def command(ctx: click.Context, dry_run: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Remove the containers, networks and workspaces whose owners are certainly gone.

    Those of living processes, other users and other machines stay, and so do named sessions. The
    exit code is 1 if something could not be removed.
    """
    from rlm_containers.cli.messages import say, show_error
    from rlm_containers.cli.terminal import print_table
    from rlm_containers.container import prune

    pruned = prune(answering(names).values(), dry_run=dry_run)
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
        done = "would go" if dry_run else "removed"
        print_table(
            ("kind", "name", "what became of it"),
            [(kind, name, done) for kind, found in kinds.items() for name in found],
        )
    else:
        say("nothing is left behind", "dim")
    for error in pruned.errors:
        show_error(error)
    if pruned.errors:
        ctx.exit(1)
