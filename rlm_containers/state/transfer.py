"""Sessions on their way to another machine, as one file."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from rlm_containers.errors import ArchiveError
from rlm_containers.state.archive import Archive, portable, read_archive, write_archive
from rlm_containers.state.directory import check_name, manifest_of, opened, write_manifest
from rlm_containers.state.lock import SessionLock
from rlm_containers.state.sessions import SessionStore
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.workspace import remove_tree

#: Bytes that the files of an imported session may have unless told otherwise.
MAX_IMPORT = 64 * 1024**3


def export_session(
    name: str,
    path: str | os.PathLike[str],
    *,
    snapshots: bool = True,
    overwrite: bool = False,
    sessions: SessionStore | None = None,
) -> tuple[str, ...]:
    """Write a session that nobody uses to one file.

    Args:
        name: the session.
        path: the file; compressed if it ends in ``.gz`` or ``.tgz``.
        snapshots: whether its snapshots go, too.
        overwrite: whether a file that is there may be replaced.
        sessions: where the session is; ``None`` for this user's.

    Returns:
        What of its workspace is not in it, such as sockets, or links that lead out.

    Raises:
        ArchiveError: the file is there, or cannot be written.
        SessionNotFoundError, SessionInUseError: as they say.
    """
    sessions = sessions or SessionStore()
    target = Path(path)
    if target.exists() and not overwrite:
        raise ArchiveError(f"There is a file {target} already.", remedy="Choose another name.")
    with sessions.locked(name) as place:
        store = SnapshotStore(place)
        try:
            with opened(place / "workspace") as top:
                head = portable(store.take(top, manifest_of(place), record=False))
            others = tuple(map(portable, store.all())) if snapshots else ()
            archive = Archive(name=name, head=head, snapshots=others)
            write_archive(target, archive, store.objects)
        finally:
            store.sweep()
    return head.skipped


def import_session(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    max_size: int = MAX_IMPORT,
    sessions: SessionStore | None = None,
) -> str:
    """Make a session of a file that :func:`export_session` has written, perhaps elsewhere.

    The file is checked whole before anything of it is used. Its variables are loaded by the
    container only, as those of any session; still, to go on with somebody's session is to run
    their code there.

    Args:
        path: the file.
        name: the session's name; ``None`` for the one that it had.
        max_size: bytes that its files may have altogether.
        sessions: where it goes; ``None`` for this user's.

    Returns:
        The session's name.

    Raises:
        ArchiveError: it is no such file, is damaged, or too large. Nothing has been imported.
        SessionError: there is a session of that name, or no room.
    """
    sessions = sessions or SessionStore()
    if name is not None:
        check_name(name)
    sessions.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    staging = sessions.directory / f".imported-{secrets.token_hex(6)}"
    with contextlib.closing(SessionLock(staging, "imported", create=True)):
        try:
            store = SnapshotStore(staging)
            archive = read_archive(Path(path), store.objects, max_size)
            name = name or archive.name
            (staging / "workspace").mkdir(mode=0o700)
            with opened(staging / "workspace") as top:
                store.lay_out(archive.head, top, (os.getuid(), os.getgid()))
            for snapshot in archive.snapshots:
                store.add(snapshot)
            store.sweep()
            write_manifest(staging, archive.head.manifest, archive.head.manifest.created)
            _put_in_place(staging, name, sessions)
        finally:
            remove_tree(staging)
    sessions.sweep()
    return name


def _put_in_place(staging: Path, name: str, sessions: SessionStore) -> None:
    place = sessions.directory / name
    with sessions.made(name):
        for entry in os.listdir(staging):
            if entry not in ("lock", "workspace"):
                (staging / entry).rename(place / entry)
        (staging / "workspace").rename(place / "workspace")  # last: with it, it is a session
