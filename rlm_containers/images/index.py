"""What this user's sandboxes have built, pulled, imported or exported, in one file.

The engines know which images there are; the index knows what for and since when they have not been
used. So it may be lost: what it lacks is taken from the engines' labels and from the archives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from rlm_containers.errors import ContainersError
from runtimes import Runtime

logger = logging.getLogger("rlm_containers")

_VERSION = 1

#: Seconds between two notes that something was used: not every start must write a file.
_TOUCH = 3600.0

#: What the file may measure; more is not an index.
_LARGEST = 64 * 1024**2

_Entries = dict[tuple[str, str], "ImageEntry"]


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """One image in one store, or one archive.

    Attributes:
        store: the engine and its store, for instance ``"podman /var/lib/containers/storage"``;
            ``"archive"`` for an exported file.
        name: the image's name, or the file's.
        kind: ``"built"``, ``"pulled"``, ``"imported"`` or ``"exported"``.
        origin: what it was made from, for people to read.
        size: bytes that its removal may free: without the image that it stands on.
        made: when, in seconds since 1970.
        used: when it was used last, to within an hour.
    """

    store: str
    name: str
    kind: str
    origin: str
    size: int
    made: float
    used: float

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from every other entry."""
        return self.store, self.name


class Index:
    """The index in a directory.

    Any number of processes may use it at once: a change is made under a lock, and replaces the file
    as a whole. One that cannot be read counts as empty, and is kept beside the next.

    Args:
        directory: where it is; made with the first entry.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "index.json"

    def entries(self) -> list[ImageEntry]:
        """All entries, as they are at this moment."""
        return list(self._read()[0].values())

    def put(self, *entries: ImageEntry) -> None:
        """Add entries, or replace those of the same store and name.

        Raises:
            OSError: the index cannot be written.
        """
        if entries:
            self._change(lambda known: known.update((entry.key, entry) for entry in entries))

    def remove(self, *keys: tuple[str, str]) -> None:
        """Remove entries; those that are not there are gone already."""

        def change(known: _Entries) -> None:
            for key in keys:
                known.pop(key, None)

        if keys:
            self._change(change)

    def touch(self, store: str, name: str) -> None:
        """Note that something is used now. Does nothing if the index does not have it."""
        now = time.time()
        entry = self._read()[0].get((store, name))
        if entry is None or abs(now - entry.used) < _TOUCH:
            return

        def change(known: _Entries) -> None:
            if (store, name) in known:
                known[store, name] = dataclasses.replace(known[store, name], used=now)

        self._change(change)

    def _change(self, change: Callable[[_Entries], object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.path.with_suffix(".lock")):
            known, damaged = self._read()
            change(known)
            if damaged:
                os.replace(self.path, self.path.with_suffix(".damaged"))
            rows = [dataclasses.asdict(entry) for entry in known.values()]
            temporary = self.path.with_suffix(f".{secrets.token_hex(4)}.new")
            try:
                with open(temporary, "x", encoding="utf-8") as file:
                    json.dump({"version": _VERSION, "entries": rows}, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)

    def _read(self) -> tuple[_Entries, bool]:
        """The entries, and whether the file is not what it should be."""
        try:
            with open(self.path, "rb") as file:
                content = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return {}, False
        except OSError as error:
            logger.warning("the index %s cannot be read: %s", self.path, error.strerror)
            return {}, False
        try:
            raw = json.loads(content)
            if raw["version"] != _VERSION:
                raise ValueError(f"version {raw['version']}")
            entries = [_entry(row) for row in raw["entries"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("the index %s is damaged (%r) and is made anew", self.path, error)
            return {}, True
        return {entry.key: entry for entry in entries}, False


def images_directory() -> Path:
    """Where the user's index, archives and builds are."""
    return platformdirs.user_cache_path("rlm-containers") / "images"


def store_of(runtime: Runtime) -> str:
    """An engine's store of images, as the index calls it."""
    info = runtime.info()
    return f"{info.engine} {info.store}".rstrip()


def note_use(runtime: Runtime, image: str, index: Index | None = None) -> None:
    """Note that an image is used. Never an error: nothing depends on it."""
    try:
        (index or Index(images_directory())).touch(store_of(runtime), image)
    except (ContainersError, OSError) as error:
        logger.debug("the use of %s could not be noted: %s", image, error)


def _entry(row: dict[str, Any]) -> ImageEntry:
    entry = ImageEntry(**row)
    for field in dataclasses.fields(ImageEntry):
        kind = {"str": str, "int": int}.get(str(field.type), (int, float))
        if not isinstance(getattr(entry, field.name), kind):
            raise TypeError(field.name)
    return entry


@contextlib.contextmanager
def locked(path: Path, note: str = "") -> Iterator[None]:
    """Hold a lock that other processes, and other threads, wait for.

    Args:
        path: the lock's file, which stays.
        note: logged if there is a wait.
    """
    import filelock  # noqa: PLC0415  # not on the way of a start that needs no lock

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if note:
            logger.info("%s", note)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
