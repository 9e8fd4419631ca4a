"""Lists images and archives with their sizes, and removes old ones or too many."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlm_containers.errors import ContainersError
from rlm_containers.images.cache import ARCHIVES, DERIVED, LABEL, ORIGIN_LABEL, ImageCache
from rlm_containers.images.index import ImageEntry, store_of
from runtimes import Runtime

#: Seconds until leftovers of a crashed build or export may be deleted.
_ABANDONED = 86_400.0

_Entries = dict[tuple[str, str], ImageEntry]


@dataclass(frozen=True, kw_only=True)
class PrunedImage:
    """An entry that was to be removed.

    Attributes:
        entry: the entry.
        reason: why it is still there; empty if it was removed.
    """

    entry: ImageEntry
    reason: str = ""


def list_images(runtimes: Iterable[Runtime], cache: ImageCache | None = None) -> list[ImageEntry]:
    """List the images of these engines and the archives, the most recently used last.

    This also corrects the index: entries for what is gone are removed, and missing ones are made
    again from the images' labels and the archives.

    Args:
        runtimes: the engines.
        cache: the image cache; by default the user's.

    Raises:
        EngineCommandError: an engine does not answer.
    """
    cache = cache or ImageCache()
    known = {entry.key: entry for entry in cache.index.entries()}
    found = _archives(cache, known)
    stores = {ARCHIVES}
    for runtime in runtimes:
        stores.add(store_of(runtime))
        found |= _images(runtime, known)
    cache.index.remove(*(key for key in known if key[0] in stores and key not in found))
    cache.index.put(*(entry for key, entry in found.items() if key not in known))
    return sorted(found.values(), key=lambda entry: entry.used)


def prune_images(
    runtimes: Iterable[Runtime],
    *,
    keep: int | None = None,
    unused: float | None = None,
    dry_run: bool = False,
    cache: ImageCache | None = None,
) -> list[PrunedImage]:
    """Remove images and archives, the least recently used first.

    Only what this project built, pulled, imported or exported is removed, and nothing that a
    container or another image needs.

    Args:
        runtimes: the engines to remove images from.
        keep: the bytes that may stay in all; ``None`` for no limit.
        unused: seconds. What was not used for longer than this is removed, whatever ``keep`` is.
            ``None``: nothing is removed for its age.
        dry_run: only say what would be removed.
        cache: the image cache; by default the user's.

    Returns:
        What was removed and what could not be, in the order of the attempts.

    Raises:
        EngineCommandError: an engine does not answer.
    """
    cache = cache or ImageCache()
    engines = {store_of(runtime): runtime for runtime in runtimes}
    entries = list_images(engines.values(), cache)
    if not dry_run:
        _remove_abandoned(cache)
    total = sum(entry.size for entry in entries)
    now = time.time()
    pruned = []
    for entry in entries:
        old = unused is not None and now - entry.used > unused
        if not old and (keep is None or total <= keep):
            continue
        reason = "" if dry_run else _remove(cache, engines.get(entry.store), entry)
        if not reason:
            total -= entry.size
        pruned.append(PrunedImage(entry=entry, reason=reason))
    if not dry_run:
        cache.index.remove(*(item.entry.key for item in pruned if not item.reason))
    return pruned


def _archives(cache: ImageCache, known: _Entries) -> _Entries:
    found: _Entries = {}
    for path in sorted(cache.archives.glob("[!.]*.tar")):
        status = path.stat()
        entry = ImageEntry(
            store=ARCHIVES,
            name=path.name,
            kind="exported",
            origin="",
            size=status.st_size,
            made=status.st_mtime,
            used=status.st_mtime,
        )
        found[entry.key] = known.get(entry.key, entry)
    return found


def _images(runtime: Runtime, known: _Entries) -> _Entries:
    store, now = store_of(runtime), time.time()
    found: _Entries = {}
    for record in runtime.find_images({LABEL: ""}):
        for name in record.tags:
            # An image that somebody built on top of one of these has the same labels.
            if _is_derived(name):
                entry = ImageEntry(
                    store=store,
                    name=name,
                    kind="built",
                    origin=record.labels.get(ORIGIN_LABEL, ""),
                    size=record.size,
                    made=now,
                    used=now,
                )
                found[entry.key] = known.get(entry.key, entry)
    for key, entry in known.items():
        if key[0] == store and not _is_derived(entry.name) and runtime.image_exists(entry.name):
            found[key] = entry
    return found


def _is_derived(name: str) -> bool:
    return name.startswith(f"{DERIVED}:")


def _remove(cache: ImageCache, runtime: Runtime | None, entry: ImageEntry) -> str:
    """Remove an image or archive. Return why it could not be removed, or an empty string."""
    try:
        if runtime is None:
            # Only the last part of the name counts: the index is a file and may be tampered with.
            (cache.archives / Path(entry.name).name).unlink(missing_ok=True)
        else:
            runtime.remove_image(entry.name)
    except (ContainersError, OSError) as error:
        return str(error)
    return ""


def _remove_abandoned(cache: ImageCache) -> None:
    for folder, pattern in (("builds", "*"), ("archives", ".*")):
        for path in (cache.directory / folder).glob(pattern):
            if time.time() - path.lstat().st_mtime > _ABANDONED:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
