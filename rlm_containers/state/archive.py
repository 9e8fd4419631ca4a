"""A session as one file, to take it to another machine: export and import.

The file is a tar archive. Its first member is ``session.json``, which describes the workspace and
the snapshots. The contents of their files follow as ``objects/SHA-256``, each only once. The
archive is compressed by gzip if its name ends in ``.gz`` or ``.tgz``.

An archive may come from a stranger, so everything in it is checked before it is used. Nothing is
extracted to a path that the archive names: members are stored under the digests that
``session.json`` announces, must have the announced lengths, which are bounded in total, and must
match their digests. Headers are read one at a time, without the ones for long names and pax: those
could be of any size, and our archives have none.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import secrets
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self, cast

from rlm_containers.errors import (
    ArchiveError,
    SessionError,
    SessionStateError,
    host_errors,
    remedy_for,
)
from rlm_containers.interpreter import UntrustedJSON
from rlm_containers.state.hostfiles import is_session_name, make_private, replace_file
from rlm_containers.state.lock import SessionLock
from rlm_containers.state.nofollow import free_space
from rlm_containers.state.objects import ObjectStore, is_digest
from rlm_containers.state.sessions import (
    IMPORTED,
    SessionStore,
    check_name,
    write_manifest,
)
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.snapshots import Snapshot, SnapshotEntry
from rlm_containers.state.workspace import Workspace, remove_tree

FORMAT = 1

#: Bytes that the files of an imported session may have by default.
MAX_IMPORT = 64 * 1024**3

_INDEX = "session.json"
_OBJECTS = "objects/"

#: Bytes of the description, and bytes that it may take in memory once it is parsed.
_MAX_INDEX = 64 * 1024**2
_MAX_MEMORY = 384 * 1024**2
_MAX_SNAPSHOTS = 1_000
#: JSON keys and values of the description: a dozen for each file.
_MAX_PARTS = 4_000_000

_BLOCK = tarfile.BLOCKSIZE

#: Bytes of zeros that may follow the end: some programs pad their archives.
_MAX_PADDING = 1 << 20


def export_session(
    name: str,
    path: str | os.PathLike[str],
    *,
    snapshots: bool = True,
    overwrite: bool = False,
    sessions: SessionStore | None = None,
) -> tuple[str, ...]:
    """Write a session that no sandbox has to one file.

    Args:
        name: the session.
        path: the file; compressed if it ends in ``.gz`` or ``.tgz``.
        snapshots: whether to include its snapshots.
        overwrite: whether to replace an existing file.
        sessions: where the session is; ``None`` for this user's sessions.

    Returns:
        The paths of its workspace that are left out: FIFOs, sockets, devices, and symbolic links
        that lead out of it.

    Raises:
        ArchiveError: the file exists, or cannot be written.
        SessionNotFoundError: there is no such session.
        SessionInUseError: a sandbox has it.
        SessionStateError: a snapshot cannot be read, or contents are damaged.
    """
    sessions = sessions or SessionStore()
    target = Path(path)
    if target.exists() and not overwrite:
        raise ArchiveError(f"There is a file {target} already.", remedy="Choose another name.")
    with sessions.locked(name) as session:
        store = session.snapshots
        try:
            head = portable(store.create(session.workspace, session.manifest, listed=False))
            others = tuple(map(portable, store.every())) if snapshots else ()
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
    """Make a session from a file of :func:`export_session`.

    The whole file is checked before any of it is used. As always, only the container loads the
    variables. But to use somebody's session is to run their code there.

    Args:
        path: the file.
        name: the name for the session; ``None`` for the name that it had.
        max_size: bytes that its files may have in total.
        sessions: where to put it; ``None`` for this user's sessions.

    Returns:
        The session's name.

    Raises:
        ArchiveError: it is no such file, is damaged, or too large. Nothing has been imported.
        SessionError: there is a session of that name, or no space on the disk.
    """
    sessions = sessions or SessionStore()
    if name is not None:
        check_name(name)
    with host_errors(SessionError, f"The session in {path} could not be imported"):
        make_private(sessions.directory)
        staging = sessions.directory / f"{IMPORTED}{secrets.token_hex(6)}"
        with contextlib.closing(SessionLock(staging, "imported", create=True)):
            try:
                store = SnapshotStore(staging)
                archive = read_archive(Path(path), store.objects, max_size)
                name = name or archive.name
                with contextlib.closing(Workspace.open(staging / "workspace")) as workspace:
                    store.lay_out(archive.head, workspace)
                for snapshot in archive.snapshots:
                    store.add(snapshot)
                store.sweep()
                write_manifest(staging, archive.head.manifest, archive.head.manifest.created)
                with sessions.creating(name) as place:
                    for entry in os.listdir(staging):
                        if entry != "lock":
                            (staging / entry).rename(place / entry)
            finally:
                remove_tree(staging)
    sessions.sweep()
    return name


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The description of an exported session.

    Attributes:
        name: the session's name.
        head: its workspace, as a snapshot.
        snapshots: its snapshots.
    """

    name: str
    head: Snapshot
    snapshots: tuple[Snapshot, ...]

    @property
    def digests(self) -> dict[str, int]:
        """Map the objects that it needs to their lengths."""
        needed: dict[str, int] = {}
        for snapshot in (self.head, *self.snapshots):
            needed.update(snapshot.digests)
        return needed

    def to_json(self) -> bytes:
        """Return it as JSON text."""
        described = {
            "format": FORMAT,
            "name": self.name,
            "head": self.head.to_json(),
            "snapshots": [snapshot.to_json() for snapshot in self.snapshots],
        }
        return json.dumps(described).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read and check JSON text from a stranger.

        Raises:
            ValueError: it does not describe an archive.
        """
        raw = _bounded(text).load()
        del text
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError("it is of no known format")
        name, snapshots = raw.get("name"), raw.get("snapshots")
        if not is_session_name(name):
            raise ValueError("it has no name")
        if not isinstance(snapshots, list) or len(snapshots) > _MAX_SNAPSHOTS:
            raise ValueError("its snapshots are no list, or too long a one")
        made = cls(
            name=cast(str, name),
            head=Snapshot.from_json(raw.get("head")),
            snapshots=tuple(Snapshot.from_json(snapshot) for snapshot in snapshots),
        )
        lengths: dict[str, int] = {}
        for snapshot in (made.head, *made.snapshots):
            for entry in snapshot.entries:
                if entry.kind == "symlink" and not _stays_inside(entry):
                    raise ValueError(f"the link {entry.path[:80]!r} leads out of the workspace")
                if (
                    entry.kind == "file"
                    and lengths.setdefault(entry.digest, entry.size) != entry.size
                ):
                    raise ValueError(f"the length of {entry.path[:80]!r} is said to be two things")
        return made


def portable(snapshot: Snapshot) -> Snapshot:
    """Move links that lead out of the workspace from the entries to the skipped paths."""
    out = [e.path for e in snapshot.entries if e.kind == "symlink" and not _stays_inside(e)]
    if not out:
        return snapshot
    entries = [entry for entry in snapshot.entries if entry.path not in out]
    made = Snapshot.of(entries, (*snapshot.skipped, *out), snapshot.manifest, snapshot.note)
    return replace(made, created=snapshot.created)


def _stays_inside(link: SnapshotEntry) -> bool:
    """Tell whether a link stays in the workspace, even if other such links are on its way."""
    parts = link.target.split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    # ".." is safe at the start, where it leaves real directories. Later it could leave a link.
    return parts[0] != "" and ".." not in parts[up:] and up <= link.path.count("/")


def write_archive(path: Path, archive: Archive, objects: ObjectStore) -> None:
    """Write an archive as a whole or not at all.

    Raises:
        ArchiveError: it cannot be written.
        SessionStateError: an object is missing or damaged.
    """
    try:
        with replace_file(path) as plain, _packed(plain, path) as file:
            index = archive.to_json()
            _check_length(index)
            _write_member(file, _INDEX, len(index), io.BytesIO(index))
            for digest, size in sorted(archive.digests.items()):
                with objects.opened(digest, size) as source:
                    _write_member(file, _OBJECTS + digest, size, source)
            file.write(bytes(2 * _BLOCK))
    except OSError as error:
        raise ArchiveError(
            f"The session could not be exported to {path}: {error.strerror}.",
            remedy=remedy_for(error, "Name a directory that is there and can be written to."),
        ) from error


def _check_length(index: bytes) -> None:
    try:
        if len(index) > _MAX_INDEX:
            raise ValueError(f"its description has more than {_MAX_INDEX:,} bytes")
        _bounded(index)
    except ValueError as error:
        raise ArchiveError(
            f"The session has too many files for one archive: {error}.",
            remedy="Export it without its snapshots, or remove files that are not needed.",
        ) from error


@contextlib.contextmanager
def _packed(file: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    if path.suffix not in (".gz", ".tgz"):
        yield file
        return
    with gzip.GzipFile(path.name, "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
        yield cast(BinaryIO, packed)


def _write_member(file: BinaryIO, name: str, size: int, source: BinaryIO) -> None:
    header = tarfile.TarInfo(name)
    header.size = size
    file.write(header.tobuf(tarfile.GNU_FORMAT))
    copied = 0
    while chunk := source.read(1 << 20):
        file.write(chunk)
        copied += len(chunk)
    if copied != size:
        raise SessionStateError(f"{name} is not as long as it was.")
    file.write(bytes(-size % _BLOCK))


def read_archive(path: Path, objects: ObjectStore, max_size: int) -> Archive:
    """Check an archive, and put its objects into a store.

    Args:
        path: the file.
        objects: an empty store, which the caller removes if this fails.
        max_size: bytes that all objects may have in total.

    Raises:
        ArchiveError: it is no exported session, is damaged, or too large.
    """
    try:
        # O_NONBLOCK, because to open a FIFO would wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as plain, _unpacked(plain) as file:
            return _read(file, objects, max_size)
    except (ValueError, SessionStateError, MemoryError) as error:
        raise ArchiveError(
            f"{path} is not an exported session, or is damaged: {error}",
            remedy="Export it again. Nothing has been imported.",
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise ArchiveError(
            f"{path} could not be imported: {error}.",
            remedy="Nothing has been imported.",
        ) from error


@contextlib.contextmanager
def _unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise ValueError("it is no regular file")
    magic = file.read(2)
    file.seek(0)
    if magic != b"\x1f\x8b":
        yield file
        return
    with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
        yield cast(BinaryIO, unpacked)


def _read(file: BinaryIO, objects: ObjectStore, max_size: int) -> Archive:
    member = _next_member(file)
    if member is None or member[0] != _INDEX or member[1] > _MAX_INDEX:
        raise ValueError(f"it does not begin with {_INDEX}")
    archive = Archive.from_json(_exactly(file, member[1]))
    _exactly(file, -member[1] % _BLOCK)
    needed = archive.digests
    total = sum(needed.values())
    # Entries may share an object, and each is a file of its own once it is laid out.
    largest = max(snapshot.size for snapshot in (archive.head, *archive.snapshots))
    make_private(objects.directory)
    room = free_space(objects.directory)
    if max(total, largest) > max_size:
        raise ValueError(
            f"its files have {max(total, largest):,} bytes, and {max_size:,} are allowed (max_size)"
        )
    # Everything is written twice: as an object, and in the workspace.
    total += archive.head.size
    if total > room:
        raise ValueError(f"its files take {total:,} bytes, and the disk has room for {room:,}")
    while needed:
        member = _next_member(file)
        if member is None:
            raise ValueError(f"{len(needed)} of its files are missing")
        name, size = member
        digest = name.removeprefix(_OBJECTS)
        if not name.startswith(_OBJECTS) or needed.get(digest) != size:
            raise ValueError(f"{name[:80]!r} does not belong in it")
        del needed[digest]
        objects.receive(file, digest, size)
        _exactly(file, -size % _BLOCK)
    if _next_member(file) is not None:
        raise ValueError("there is more in it than belongs there")
    # Read to the very end: gzip has its checksum there.
    rest = file.read(_MAX_PADDING + 1)
    if len(rest) > _MAX_PADDING or any(rest):
        raise ValueError("there is more in it than belongs there")
    return archive


def _next_member(file: BinaryIO) -> tuple[str, int] | None:
    """Return the name and length of the next member, a plain file; ``None`` at the end."""
    header = _exactly(file, _BLOCK)
    if not any(header):
        return None
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except tarfile.HeaderError as error:
        raise ValueError(f"a header in it is none ({error})") from error
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size < 0:
        raise ValueError(f"{member.name[:80]!r} in it is no file")
    if member.name != _INDEX and not is_digest(member.name.removeprefix(_OBJECTS)):
        raise ValueError(f"{member.name[:80]!r} does not belong in it")
    return member.name, member.size


def _bounded(text: bytes) -> UntrustedJSON:
    """Check a description before it is parsed.

    Raises:
        ValueError: it would take too much memory.
    """
    found = UntrustedJSON(text, _MAX_PARTS)
    if found.size > _MAX_MEMORY:
        raise ValueError(f"its description would take {found.size:,} bytes of memory")
    return found


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("its end is missing")
    return data
