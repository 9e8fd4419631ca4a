"""``rlm-containers images``: the images that were built, pulled or imported for sandboxes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from rlm_containers.cli.command import (
    Group,
    answering_runtimes,
    json_option,
    print_json,
    runtimes_option,
)
from rlm_containers.cli.sandbox_options import given_options, sandbox_options
from rlm_containers.cli.terminal import activity, engine_progress, print_table, say
from rlm_containers.cli.units import AGE, SIZE, ago
from rlm_containers.errors import format_size
from runtimes.text import clean

# The options of a sandbox that determine its image.
_OF_IMAGES = (
    "profile",
    "image",
    "packages",
    "requirements",
    "system_packages",
    "dockerfile",
    "runtime",
)

_one_runtime = click.option(
    "--runtime", metavar="NAME", help="The engine. [default: the first that answers]"
)


@click.group(
    "images",
    cls=Group,
    examples=(
        ("Build an image before it is needed", "images warm --package numpy"),
        ("Take it to a machine without a network", "images export IMAGE image.tar"),
        ("Free disk space", "images prune --keep 20GB --unused 30d"),
    ),
)
def command() -> None:
    """Build, list, move and remove the images of sandboxes.

    Images that other programs pulled or built are not listed and never removed.
    """


@command.command("list", examples=(("On every engine", "images list"),))
@runtimes_option
@json_option
def list_command(names: tuple[str, ...], as_json: bool) -> None:
    """List images and exported files, the most recently used last."""
    from rlm_containers.images import list_images

    entries = list_images(answering_runtimes(names).values())
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
        ("The configured image", "images warm"),
        ("One with packages", "images warm --package numpy --package 'pandas==2.*'"),
        ("A profile's image, on Podman", "images warm --profile data --runtime podman"),
    ),
)
@sandbox_options(only=_OF_IMAGES)
@click.pass_context
def warm_command(ctx: click.Context) -> None:
    """Pull or build the image for sandboxes with these options, and print its name."""
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
        ("To the cache, for sandboxes on every engine", "images export python:3.11-slim"),
    ),
)
@click.argument("image")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@_one_runtime
def export_command(image: str, file: Path | None, runtime: str | None) -> None:
    """Write an image to a file that docker, podman and every OCI tool can read.

    Prints the file's name. Without FILE it is written to the cache, where sandboxes look for images
    before they pull or build one.
    """
    from rlm_containers.images import ImageCache
    from runtimes import get_runtime

    with activity(f"exporting {image}"):
        path = ImageCache().export_image(get_runtime(runtime), image, file)
    click.echo(path)


@command.command("import", examples=(("On Podman", "images import image.tar --runtime podman"),))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_one_runtime
def import_command(file: Path, runtime: str | None) -> None:
    """Load an image from a file that `images export`, docker or podman has saved.

    Prints its names. Every blob is compared with its digest first. Import only files from people
    you trust: what is in the image is up to its maker.
    """
    from rlm_containers.images import ImageCache
    from runtimes import get_runtime

    with activity(f"importing {file.name}"):
        records = ImageCache().import_archive(get_runtime(runtime), file)
    for name in dict.fromkeys(tag for record in records for tag in record.tags or (record.id,)):
        click.echo(clean(name))


@command.command(
    "prune",
    examples=(
        ("By size and age", "images prune --keep 20GB --unused 30d"),
        ("Only list what would be removed", "images prune --keep 0 --dry-run"),
    ),
)
@click.option(
    "--keep", type=SIZE, metavar="SIZE", help="Keep at most this much, the most recently used."
)
@click.option("--unused", type=AGE, metavar="TIME", help="Remove what was unused for this long.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@runtimes_option
@json_option
def prune_command(
    keep: int | None, unused: float | None, dry_run: bool, names: tuple[str, ...], as_json: bool
) -> None:
    """Remove images and exported files, the least recently used first.

    Only what this project built, pulled, imported or exported is removed, and nothing that a
    container or another image needs.
    """
    from rlm_containers.images import prune_images

    if keep is None and unused is None:
        raise click.UsageError("Say what to remove: --keep SIZE, --unused TIME, or both.")
    runtimes = answering_runtimes(names).values()
    pruned = prune_images(runtimes, keep=keep, unused=unused, dry_run=dry_run)
    if as_json:
        print_json([{**dataclasses.asdict(p.entry), "kept_because": p.reason} for p in pruned])
        return
    done = "would be removed" if dry_run else "removed"
    print_table(
        ("name", "size", "used", "store", "result"),
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
