"""Snapshots: the files of a workspace at one moment, and the digests of their contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast

from rlm_containers.state.manifest import Manifest, check_time, now
from rlm_containers.state.nofollow import is_link_target, is_plain_path
from rlm_containers.state.objects import is_digest
from rlm_containers.state.trees import MAX_DEPTH, MAX_NODES

FORMAT = 1

#: Characters of the beginning of an id that is shown to people.
SHORT_LENGTH = 12

#: Characters of a note.
_MAX_NOTE = 200


@dataclass(frozen=True, kw_only=True)
class SnapshotEntry:
    """A file, a directory or a symbolic link of a snapshot.

    Attributes:
        path: relative to the workspace.
        kind: which of these.
        mode: the permission bits.
        modified: the modification time, in nanoseconds since the epoch.
        size: bytes, of a file.
        digest: the SHA-256 of the contents, of a file.
        target: where a link points to; the host never follows it.
    """

    path: str
    kind: Literal["file", "directory", "symlink"]
    mode: int = 0o777
    modified: int = 0
    size: int = 0
    digest: str = ""
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a session at one moment.

    Attributes:
        id: the SHA-256 of the entries in hexadecimal, so that the same state has the same id.
        created: when it was taken: ISO 8601, in UTC.
        note: a note by its user.
        manifest: what was known of the state.
        entries: its files, each directory before its contents.
        skipped: the paths of FIFOs, sockets and devices, which it lacks.
    """

    id: str
    created: str
    note: str
    manifest: Manifest
    entries: tuple[SnapshotEntry, ...]
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        entries: Collection[SnapshotEntry],
        skipped: Collection[str],
        manifest: Manifest,
        note: str,
    ) -> Self:
        """Make a snapshot that is taken now."""
        return cls(
            id=_id(entries),
            created=now(),
            note=note[:_MAX_NOTE],
            manifest=manifest,
            entries=tuple(entries),
            skipped=tuple(skipped),
        )

    @property
    def short_id(self) -> str:
        """The beginning of the id, for people. It works as an id unless two begin like this."""
        return self.id[:SHORT_LENGTH]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry.size for entry in self.entries)

    @property
    def digests(self) -> dict[str, int]:
        """Map the objects that it needs to their lengths."""
        return {entry.digest: entry.size for entry in self.entries if entry.kind == "file"}

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object, without its id."""
        rows = []
        for entry in self.entries:
            row = asdict(entry)
            rows.append({name: value for name, value in row.items() if value not in ("", 0)})
        return {
            "format": FORMAT,
            "created": self.created,
            "note": self.note,
            "manifest": self.manifest.to_json(),
            "entries": rows,
            "skipped": list(self.skipped),
        }

    @classmethod
    def from_json(cls, raw: object) -> Self:
        """Check JSON that may come from a stranger. The id is computed from it.

        Raises:
            ValueError: it is no snapshot, or could not be written into a workspace.
        """
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError("it is of no known format")
        rows, skipped, note = raw.get("entries"), raw.get("skipped"), raw.get("note")
        if not isinstance(rows, list) or len(rows) > MAX_NODES:
            raise ValueError("its entries are no list, or too long a one")
        if not isinstance(skipped, list) or not all(isinstance(path, str) for path in skipped):
            raise ValueError("what it skipped is no list of paths")
        if not isinstance(note, str) or len(note) > _MAX_NOTE:
            raise ValueError("its note is no text")
        entries = tuple(_entry(row) for row in rows)
        _check_tree(entries)
        return cls(
            id=_id(entries),
            created=check_time(raw.get("created")),
            note=note,
            manifest=Manifest.from_json(raw.get("manifest")),
            entries=entries,
            skipped=tuple(skipped[:MAX_NODES]),
        )


def _id(entries: Collection[SnapshotEntry]) -> str:
    """Hash everything but the modification times."""
    rows = [
        [entry.path, entry.kind, entry.mode, entry.size, entry.digest, entry.target]
        for entry in entries
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _entry(row: object) -> SnapshotEntry:
    if not isinstance(row, dict):
        raise ValueError("an entry is no object")
    path, kind = row.get("path"), row.get("kind")
    if not isinstance(path, str) or not is_plain_path(path):
        raise ValueError(f"an entry has the path {str(path)[:80]!r}")
    if kind not in ("file", "directory", "symlink"):
        raise ValueError(f"{path[:80]!r} is of an unknown kind")
    numbers = {name: row.get(name, 0) for name in ("mode", "modified", "size")}
    for name, bound in (("mode", 0o1000), ("modified", 1 << 62), ("size", 1 << 62)):
        number = numbers[name]
        if type(number) is not int or not 0 <= number < bound:
            raise ValueError(f"the {name} of {path[:80]!r} is out of bounds")
    digest, target = row.get("digest", ""), row.get("target", "")
    if kind == "file" and not is_digest(digest):
        raise ValueError(f"the digest of {path[:80]!r} is none")
    if kind == "symlink" and not is_link_target(target):
        raise ValueError(f"the link {path[:80]!r} has no valid target")
    return SnapshotEntry(
        path=path,
        kind=cast(Literal["file", "directory", "symlink"], kind),
        **numbers,
        digest=digest if kind == "file" else "",
        target=target if kind == "symlink" else "",
    )


def _check_tree(entries: Collection[SnapshotEntry]) -> None:
    """Check that a :class:`TreeWriter` can make the entries, in their order, each once."""
    seen: set[str] = set()
    open_directories: list[str] = []
    for entry in entries:
        parent = entry.path.rpartition("/")[0]
        while open_directories and open_directories[-1] != parent:
            open_directories.pop()
        if (parent and not open_directories) or entry.path in seen:
            raise ValueError(f"{entry.path[:80]!r} is not where it should be")
        if len(open_directories) >= MAX_DEPTH:
            raise ValueError(f"{entry.path[:80]!r} is too deep")
        seen.add(entry.path)
        if entry.kind == "directory":
            open_directories.append(entry.path)
