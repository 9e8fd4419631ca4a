"""The index: one file that lists what this user's sandboxes built, pulled, imported or exported.

The engines know which images there are. The index adds where they came from and when they were last
used. Losing it does little harm: the entries are made again from the images' labels and the
archives.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlm_containers.errors import ContainersError
from rlm_containers.state import cache_directory, locked, make_private, replace_file
from runtimes import Runtime
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

_VERSION = 1

#: Seconds during which a use is noted only once, so that not every start writes the file.
_TOUCH_INTERVAL = 3600.0

#: The index's largest size in bytes; a larger file is no index.
_LARGEST = 64 * 1024**2

_Entries = dict[tuple[str, str], "ImageEntry"]


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """One image in one store, or one archive.

    Attributes:
        store: the engine and its store, such as ``"podman /var/lib/containers/storage"``;
            ``"archive"`` for an exported file.
        name: the image's name, or the file's.
        kind: ``"built"``, ``"pulled"``, ``"imported"`` or ``"exported"``.
        origin: what it was made from, for people to read.
        size: bytes that its removal may free, those of the image below it not counted.
        made: when it was made, in seconds since 1970.
        used: when it was last used, in seconds since 1970, to within an hour.
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
        """The store and the name, which no two entries share."""
        return self.store, self.name


class Index:
    """The index in a directory.

    Any number of processes may use it at once: a change is made under a lock and replaces the whole
    file. A damaged index counts as empty; the next change keeps it under another name. One that
    cannot be read, or is a later version's, counts as empty too, and nothing is entered into it.

    Args:
        directory: the directory, which is made with the first entry.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "index.json"

    def entries(self) -> list[ImageEntry]:
        """Read all entries."""
        return list(self._read()[0].values())

    def put(self, *entries: ImageEntry) -> None:
        """Add entries, or replace those of the same store and name.

        Raises:
            OSError: the index cannot be written.
        """
        if entries:
            self._change(lambda known: known.update((entry.key, entry) for entry in entries))

    def remove(self, *keys: tuple[str, str]) -> None:
        """Remove entries. One that is not there is no error."""

        def change(known: _Entries) -> None:
            for key in keys:
                known.pop(key, None)

        if keys:
            self._change(change)

    def touch(self, store: str, name: str) -> None:
        """Note that something is used now. Does nothing if there is no entry for it."""
        now = time.time()
        entry = self._read()[0].get((store, name))
        if entry is None or abs(now - entry.used) < _TOUCH_INTERVAL:
            return

        def change(known: _Entries) -> None:
            if (store, name) in known:
                known[store, name] = dataclasses.replace(known[store, name], used=now)

        self._change(change)

    def _change(self, change: Callable[[_Entries], object]) -> None:
        make_private(self.path.parent)
        with locked(self.path.with_suffix(".lock")):
            known, state = self._read()
            if state == "unreadable":
                return
            change(known)
            if state == "damaged":
                os.replace(self.path, self.path.with_suffix(".damaged"))
            rows = [dataclasses.asdict(entry) for entry in known.values()]
            text = json.dumps({"version": _VERSION, "entries": rows}, indent=1)
            with replace_file(self.path, durable=True) as file:
                file.write(text.encode())

    def _read(self) -> tuple[_Entries, Literal["whole", "damaged", "unreadable"]]:
        """Read the entries, and tell in which state the file is."""
        try:
            with open(self.path, "rb") as file:
                content = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return {}, "whole"
        except OSError as error:
            logger.warning("the index %s cannot be read: %s", self.path, error.strerror)
            return {}, "unreadable"
        try:
            raw = json.loads(content)
            version = raw["version"]
            if type(version) is int and version > _VERSION:
                logger.warning(
                    "the index %s has version %d, and this version of rlm-containers reads %d",
                    self.path,
                    version,
                    _VERSION,
                )
                return {}, "unreadable"
            if version != _VERSION:
                raise ValueError(f"version {version}")
            entries = [_entry(row) for row in raw["entries"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("the index %s is damaged (%r) and will be made again", self.path, error)
            return {}, "damaged"
        return {entry.key: entry for entry in entries}, "whole"


def images_directory() -> Path:
    """Return the directory of the user's index, archives and builds."""
    return cache_directory() / "images"


def store_of(runtime: Runtime) -> str:
    """Name an engine's store of images, as the index does."""
    info = runtime.info()
    return f"{info.engine} {info.store}".rstrip()


def note_use(runtime: Runtime, image: str, index: Index | None = None) -> None:
    """Note that an image is used. Never raises an error: nothing depends on the note."""
    try:
        (index or Index(images_directory())).touch(store_of(runtime), image)
    except (ContainersError, OSError) as error:
        logger.debug("%s could not be marked as used: %s", image, error)


def _entry(row: dict[str, Any]) -> ImageEntry:
    entry = ImageEntry(**row)
    for field in dataclasses.fields(ImageEntry):
        kind = {"str": str, "int": int}.get(str(field.type), (int, float))
        if not isinstance(getattr(entry, field.name), kind):
            raise TypeError(field.name)
    return entry
