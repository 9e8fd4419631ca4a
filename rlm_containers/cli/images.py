"""``rlm-containers images``: what was built, pulled, imported and exported for sandboxes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from rlm_containers.cli.command import Group, json_option, print_json
from rlm_containers.cli.engines import answering, runtimes_option
from rlm_containers.cli.sandbox_options import given_options, sandbox_options
from rlm_containers.cli.units import AGE, SIZE, ago
from rlm_containers.errors import format_size

# Of the options of a sandbox those that say what its image is.
_OF_IMAGES = (
    "profile",
    "image",
    "packages",
    "requirements",
    "system_packages",
    "dockerfile",
    "runtime",
)

_one_runtime = click.option("--runtime", metavar="NAME", help="The engine. [default: the first]")


@click.group(
    "images",
    cls=Group,
    examples=(
        ("Have an image ready before it is needed", "images warm --package numpy"),
        ("Take it to a machine without a network", "images export IMAGE image.tar"),
        ("See what there is, and make room", "images prune --keep 20GB --unused 30d"),
    ),
)
def command() -> None:
    """Build, list, move and remove the images of sandboxes.

    What other programs have pulled or built is not listed, and never removed.
    """


@command.command("list", examples=(("On every engine", "images list"),))
@runtimes_option
@json_option
def list_command(names: tuple[str, ...], as_json: bool) -> None:
    """List the images and the exported files; what was used last is the last."""
    from rlm_containers.cli.terminal import print_table
    from rlm_containers.images import list_images

    entries = list_images(answering(names).values())
    if as_json:
        print_json([dataclasses.asdict(entry) for entry in entries])
        return
    print_table(
        ("name", "kind", "size", "used", "made of", "store"),
        [(e.name, e.kind, format_size(e.size), ago(e.used), e.origin, e.store) for e in entries],
    )


@command.command(
    "warm",
    examples=(
        ("The image of the configuration", "images warm"),
        ("With packages", "images warm --package numpy --package 'pandas==2.*'"),
        ("That of a profile, on Podman", "images warm --profile data --runtime podman"),
    ),
)
@sandbox_options(only=_OF_IMAGES)
@click.pass_context
def warm_command(ctx: click.Context) -> None:
    """Pull or build what sandboxes with these options need, and print the image's name."""
    from rlm_containers.cli.progress import engine_progress
    from rlm_containers.images import warm_image
    from rlm_containers.options import configured_options

    options = configured_options(given_options(ctx))
    with engine_progress(f"preparing {options.image}") as on_line:
        name = warm_image(options, on_line=on_line)
    click.echo(name)


@command.command(
    "export",
    examples=(
        ("To a file", "images export python:3.11-slim python.tar"),
        ("To the cache, where sandboxes of every engine look", "images export python:3.11-slim"),
    ),
)
@click.argument("image")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@_one_runtime
def export_command(image: str, file: Path | None, runtime: str | None) -> None:
    """Write an image to a file that docker, podman and every OCI tool can read.

    Prints the file's name. Without one it is in the cache, where sandboxes look for images before
    they ask a registry or build.
    """
    from rlm_containers.cli.messages import activity
    from rlm_containers.images import ImageCache
    from runtimes import get_runtime

    with activity(f"exporting {image}"):
        path = ImageCache().export_image(get_runtime(runtime), image, file)
    click.echo(path)


@command.command("import", examples=(("On Podman", "images import image.tar --runtime podman"),))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_one_runtime
def import_command(file: Path, runtime: str | None) -> None:
    """Read an image from a file that was exported here, or saved by docker or podman.

    Prints its names. The file is checked first; what is in it is its maker's.
    """
    from rlm_containers.cli.messages import activity
    from rlm_containers.cli.terminal import harmless
    from rlm_containers.images import ImageCache
    from runtimes import get_runtime

    with activity(f"importing {file.name}"):
        records = ImageCache().import_archive(get_runtime(runtime), file)
    for name in dict.fromkeys(tag for record in records for tag in record.tags or (record.id,)):
        click.echo(harmless(name))


@command.command(
    "prune",
    examples=(
        ("What is too much, and what is old", "images prune --keep 20GB --unused 30d"),
        ("Only look", "images prune --keep 0 --dry-run"),
    ),
)
@click.option("--keep", type=SIZE, metavar="SIZE", help="Keep this much; what was used last stays.")
@click.option("--unused", type=AGE, metavar="TIME", help="Remove what was not used for this long.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@runtimes_option
@json_option
def prune_command(
    keep: int | None, unused: float | None, dry_run: bool, names: tuple[str, ...], as_json: bool
) -> None:
    """Remove images and exported files, those first that were not used for longest.

    Only what this project has built, pulled, imported or exported goes, and nothing that a
    container or another image needs.
    """
    from rlm_containers.cli.messages import say
    from rlm_containers.cli.terminal import print_table
    from rlm_containers.images import prune_images

    if keep is None and unused is None:
        raise click.UsageError("Say what is to go: --keep SIZE, --unused TIME, or both.")
    pruned = prune_images(answering(names).values(), keep=keep, unused=unused, dry_run=dry_run)
    if as_json:
        print_json([{**dataclasses.asdict(p.entry), "kept_because": p.reason} for p in pruned])
        return
    done = "would go" if dry_run else "removed"
    print_table(
        ("name", "size", "used", "store", "what became of it"),
        [
            (
                p.entry.name,
                format_size(p.entry.size),
                ago(p.entry.used),
                p.entry.store,
                p.reason or done,
            )
            for p in pruned
        ],
    )
    freed = sum(p.entry.size for p in pruned if not p.reason)
    say(f"{format_size(freed)} {'would be freed' if dry_run else 'freed'}", "dim")
