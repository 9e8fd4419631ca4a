"""``rlm-containers ps``: the containers of sandboxes, on every engine."""

from __future__ import annotations

import click

from rlm_containers.cli.command import (
    Command,
    answering_runtimes,
    json_option,
    print_json,
    runtimes_option,
)
from rlm_containers.cli.terminal import print_table


@click.command(
    cls=Command,
    examples=(
        ("On every engine that answers", "ps"),
        ("On one, for another program", "ps --runtime podman --json"),
    ),
)
@runtimes_option
@json_option
def command(names: tuple[str, ...], as_json: bool) -> None:
    """List the containers of sandboxes and their owners.

    The owner is the process that started the container; it may be another user's. "(gone)" marks
    an owner that was killed together with its reaper. `prune` removes what it left behind.
    """
    from rlm_containers.state import LABEL, Owner

    found = []
    for name, runtime in answering_runtimes(names).items():
        for record in runtime.find({LABEL: ""}):
            pid = record.labels.get(LABEL, "")
            owner = Owner.from_labels(record.labels)
            found.append(
                {
                    "runtime": name,
                    "name": record.name,
                    "image": record.image,
                    "running": record.running,
                    "owner": int(pid) if pid.isdigit() else None,
                    "owner_alive": owner is None or not owner.is_gone(),
                }
            )
    if as_json:
        print_json(found)
        return
    print_table(
        ("runtime", "container", "image", "state", "owner"),
        [
            (
                row["runtime"],
                row["name"],
                row["image"],
                "running" if row["running"] else "ended",
                f"{row['owner']}{'' if row['owner_alive'] else ' (gone)'}",
            )
            for row in found
        ],
    )
