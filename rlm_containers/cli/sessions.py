"""``rlm-containers sessions``: the sessions that outlive their sandboxes."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlm_containers.cli.command import Group, json_option, print_json
from rlm_containers.cli.terminal import activity, print_table, say
from rlm_containers.cli.units import SIZE, ago
from rlm_containers.errors import ContainersError, SessionNotFoundError, format_size

if TYPE_CHECKING:
    from rlm_containers.state import Manifest, SessionInfo, SessionStore


def _complete(ctx: click.Context, argument: click.Parameter, incomplete: str) -> list[str]:
    from rlm_containers.state import SessionStore

    return [name for name in SessionStore().names() if name.startswith(incomplete)]


_name = click.argument("name", shell_complete=_complete)


@click.group(
    "sessions",
    cls=Group,
    examples=(
        ("Start a session, or resume it", "repl --session work"),
        ("List all", "sessions list"),
        ("Keep a state to return to", "sessions snapshot work --note 'before the clean-up'"),
        ("Take it to another machine", "sessions export work work.tgz"),
    ),
)
def command() -> None:
    """List, copy, move and remove sessions.

    `run`, `repl` and `ask` start or resume a session with --session NAME.
    """


@command.command("list", examples=(("All", "sessions list"),))
@json_option
def list_command(as_json: bool) -> None:
    """List the sessions."""
    from rlm_containers.state import SessionStore

    store = SessionStore()
    found = []
    for name in store.names():
        with contextlib.suppress(SessionNotFoundError):  # it was removed meanwhile
            found.append(store.inspect(name))
    for info in found:
        if info.problem:
            say(f"{info.name}: {info.problem}", "red")
    if as_json:
        print_json([_describe(info) for info in found])
        return
    print_table(
        ("name", "used", "variables", "size", "snapshots", "python", "state"),
        [
            (
                info.name,
                _ago(info.manifest.used) if info.manifest else "?",
                len(info.manifest.variables) if info.manifest else "?",
                "?" if info.size is None else format_size(info.size),
                info.snapshots,
                info.manifest.python if info.manifest else "?",
                "free" if info.pid is None else f"in use by {info.pid or 'a process'}",
            )
            for info in found
        ],
    )


@command.command("show", examples=(("What is in it", "sessions show work"),))
@_name
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Show a session's variables, including those that could not be saved, and its snapshots."""
    from rlm_containers.state import SessionStore

    store = SessionStore()
    info = store.inspect(name)
    if as_json:
        snapshots = [
            {"id": s.id, "created": s.created, "note": s.note, "size": s.size}
            for s in store.snapshots(name)
        ]
        print_json({**_describe(info), "snapshots": snapshots})
        return
    manifest = info.manifest
    facts: list[tuple[str, object]] = [
        ("directory", info.path),
        ("size", "?" if info.size is None else format_size(info.size)),
        ("snapshots", f"{info.snapshots}, {format_size(info.snapshots_size)}"),
    ]
    if manifest is not None:
        facts += [
            ("made", manifest.created),
            ("used", manifest.used),
            ("python", f"{manifest.python or '?'} in {manifest.image or '?'}"),
            ("engine", manifest.engine or "?"),
        ]
    print_table(("what", "value"), facts)
    if manifest is None:
        return
    print_table(
        ("variable", "type", "size"),
        [(v.name, v.type, format_size(v.size)) for v in manifest.variables],
    )
    if manifest.unsaved:
        print_table(
            ("not saved", "type", "why"), [(v.name, v.type, v.reason) for v in manifest.unsaved]
        )


@command.command(
    "remove",
    examples=(
        ("Two at once", "sessions remove work other"),
        ("Only one snapshot", "sessions remove work --snapshot 3f2a9c"),
    ),
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=_complete)
@click.option("--snapshot", metavar="ID", help="Remove only this snapshot of the session.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove_command(names: tuple[str, ...], snapshot: str | None, yes: bool) -> None:
    """Remove sessions and their snapshots, also those that are damaged."""
    from rlm_containers.state import SessionStore

    store = SessionStore()
    if snapshot is not None and len(names) != 1:
        raise click.UsageError("--snapshot needs exactly one session.")
    what = {name: _with_size(store, name) for name in names}
    if snapshot is not None:
        what = {name: f"the snapshot {snapshot} of {name}" for name in names}
    if not yes:
        click.confirm(f"Remove {', '.join(what.values())} for good?", abort=True, err=True)
    for name in what:
        if snapshot is not None:
            store.remove_snapshot(name, snapshot)
        else:
            store.remove(name)


def _with_size(store: SessionStore, name: str) -> str:
    """Return a session's name with its size, if that can be found out."""
    try:
        size = store.inspect(name).size
        return name if size is None else f"{name} ({format_size(size)})"
    except SessionNotFoundError:
        raise
    except ContainersError:
        return name


@command.command("snapshots", examples=(("All of one session", "sessions snapshots work"),))
@_name
@json_option
def snapshots_command(name: str, as_json: bool) -> None:
    """List the snapshots of a session, the oldest first."""
    from rlm_containers.state import SessionStore

    found = SessionStore().snapshots(name)
    if as_json:
        print_json(
            [{"id": s.id, "created": s.created, "note": s.note, "size": s.size} for s in found]
        )
        return
    print_table(
        ("id", "made", "variables", "size", "note"),
        [
            (s.short_id, _ago(s.created), len(s.manifest.variables), format_size(s.size), s.note)
            for s in found
        ],
    )


@command.command("snapshot", examples=(("With a note", "sessions snapshot work --note 'clean'"),))
@_name
@click.option("--note", default="", help="A note to recognize it by.")
def snapshot_command(name: str, note: str) -> None:
    """Take a snapshot of a session that no sandbox uses, and print the snapshot's id."""
    from rlm_containers.state import SessionStore

    click.echo(SessionStore().snapshot(name, note).id)


@command.command("restore", examples=(("Go back", "sessions restore work 3f2a9c"),))
@_name
@click.argument("snapshot")
def restore_command(name: str, snapshot: str) -> None:
    """Reset a session to a snapshot. Its present state is lost unless a snapshot has it."""
    from rlm_containers.state import SessionStore

    SessionStore().restore(name, snapshot)


@command.command("fork", examples=(("From a snapshot", "sessions fork work try --from 3f2a9c"),))
@_name
@click.argument("new")
@click.option("--from", "snapshot", metavar="ID", help="A snapshot. [default: the present state]")
def fork_command(name: str, new: str, snapshot: str | None) -> None:
    """Copy a session, or a snapshot of it, to a new session."""
    from rlm_containers.state import SessionStore

    SessionStore().fork(name, new, snapshot)


@command.command("export", examples=(("To one file", "sessions export work work.tgz"),))
@_name
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--no-snapshots", is_flag=True, help="Leave its snapshots out.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def export_command(name: str, file: Path, no_snapshots: bool, force: bool) -> None:
    """Write a session to a file, compressed if the file's name ends in .tgz or .gz."""
    from rlm_containers.state import export_session

    with activity(f"exporting {name}"):
        skipped = export_session(name, file, snapshots=not no_snapshots, overwrite=force)
    for path in skipped:
        say(f"not exported: {path}", "yellow")
    click.echo(file)


@command.command("import", examples=(("Under another name", "sessions import work.tgz --name w2"),))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="The new session's name. [default: the name in the file]")
@click.option(
    "--max-size", type=SIZE, metavar="SIZE", help="Refuse a larger session. [default: 64GiB]"
)
def import_command(file: Path, name: str | None, max_size: int | None) -> None:
    """Make a session from a file, and print its name.

    The whole file is checked first. Resuming somebody's session runs their code in a sandbox.
    """
    from rlm_containers.state import import_session

    limits: dict[str, Any] = {} if max_size is None else {"max_size": max_size}
    with activity(f"importing {file.name}"):
        made = import_session(file, name, **limits)
    click.echo(made)


def _ago(moment: str) -> str:
    try:
        return ago(datetime.fromisoformat(moment).timestamp())
    except ValueError:
        return moment


def _describe(info: SessionInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "path": str(info.path),
        "size": info.size,
        "problem": info.problem,
        "in_use": info.pid is not None,
        "pid": info.pid or None,
        "is_current": info.is_current,
        "snapshots_size": info.snapshots_size,
        "manifest": _manifest(info.manifest),
    }


def _manifest(manifest: Manifest | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    return {
        "created": manifest.created,
        "used": manifest.used,
        "python": manifest.python,
        "image": manifest.image,
        "engine": manifest.engine,
        "variables": [dataclasses.asdict(variable) for variable in manifest.variables],
        "unsaved": [dataclasses.asdict(variable) for variable in manifest.unsaved],
    }
