"""The image cache: how images get into an engine's store, and into files and out of them."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlm_containers.errors import ContainersError, ImageArchiveError, ImageNotFoundError
from rlm_containers.images.archive import ImageArchive, pack_archive, read_archive
from rlm_containers.images.index import ImageEntry, Index, images_directory, store_of
from rlm_containers.state import locked, make_private
from runtimes import ImageRecord, Runtime
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: The label of every derived image. Its value is the hash of what went into the image.
LABEL = "io.github.rlm-containers.image"

#: The label that tells people what an image was made from.
ORIGIN_LABEL = "io.github.rlm-containers.origin"

#: The name of every derived image without its tag, which is the hash.
DERIVED = "localhost/rlm-containers/derived"

#: The index's name for the store of exported files.
ARCHIVES = "archive"


class ImageCache:
    """The image cache in a directory.

    Args:
        directory: the directory; by default it is in the user's cache directory.

    Attributes:
        index: the list of known images.
        archives: the directory of exported images, which all engines load images from.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or images_directory()
        self.index = Index(self.directory)
        self.archives = self.directory / "archives"

    # Getting images

    def require(
        self, runtime: Runtime, image: str, on_line: Callable[[str], None] | None = None
    ) -> ImageRecord:
        """Find an image in the engine's store, and fetch it if it is not there.

        Args:
            runtime: the engine.
            image: the image's name.
            on_line: called with each line of the log of a pull.

        Raises:
            ImageNotFoundError: the image is nowhere to be had.
        """
        try:
            return runtime.inspect_image(image)
        except ImageNotFoundError:
            self.fetch(runtime, image, on_line)
            return runtime.inspect_image(image)

    def fetch(
        self, runtime: Runtime, image: str, on_line: Callable[[str], None] | None = None
    ) -> None:
        """Load an image into the engine's store from an archive, or else pull it.

        Raises:
            ImageNotFoundError: there is neither an archive nor an image in the registry.
        """
        if self.load(runtime, image):
            return
        logger.info("pulling the image %s", image)
        if on_line is None:
            runtime.pull(image)
        else:
            runtime.pull(image, on_line)
        try:
            self.record(runtime, image, "pulled", image)
        except ContainersError as error:
            logger.warning("%s is not in the index of images: %s", image, error)

    def load(self, runtime: Runtime, image: str) -> bool:
        """Load an image from the archive in the cache, and tell whether there is one."""
        path = self.archive_of(image)
        if not path.exists():
            return False
        try:
            self.import_archive(runtime, path)
            self.index.touch(ARCHIVES, path.name)
        except (ContainersError, OSError) as error:
            logger.warning("%s is not used: %s", path, error)
            return False
        return runtime.image_exists(image)

    def record(
        self, runtime: Runtime, image: str, kind: str, origin: str, below: int = 0
    ) -> ImageRecord:
        """Enter an image of an engine's store into the index.

        Args:
            runtime: the engine.
            image: the image's name.
            kind: see :class:`~rlm_containers.images.index.ImageEntry`.
            origin: likewise.
            below: the size in bytes of the image below, which is not counted.
        """
        record = runtime.inspect_image(image)
        now = time.time()
        entry = ImageEntry(
            store=store_of(runtime),
            name=image,
            kind=kind,
            origin=origin,
            # podman with the storage driver vfs counts some layers of the image below twice.
            size=record.size - below if record.size >= below else record.size,
            made=now,
            used=now,
        )
        try:
            self.index.put(entry)
        except OSError as error:
            logger.warning("%s is not in the index of images: %s", image, error.strerror)
        return record

    # Archives

    def archive_of(self, image: str) -> Path:
        """Return the file in the cache for an exported image."""
        readable = re.sub(r"[^A-Za-z0-9.-]+", "_", image)[-80:]
        digest = hashlib.sha256(image.encode()).hexdigest()[:8]
        return self.archives / f"{readable}-{digest}.tar"

    def export_image(self, runtime: Runtime, image: str, path: Path | None = None) -> Path:
        """Write an image to a file that docker, podman and every OCI tool can read.

        Args:
            runtime: the engine to export from. An image that it lacks is fetched.
            image: the image's name.
            path: the file to make or replace. By default it is in the cache, where the sandboxes
                of all engines look for images before they pull or build.

        Returns:
            The file.

        Raises:
            ImageNotFoundError: the image is nowhere to be had.
            ImageArchiveError: the file cannot be written.
        """
        record = self.require(runtime, image)
        target = path or self.archive_of(image)
        saved = target.with_name(f".{target.name}.{secrets.token_hex(4)}.saved")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            runtime.save_image(image, saved)
            pack_archive(saved, target)
            size = target.stat().st_size
            if path is None:
                now = time.time()
                origin = record.labels.get(ORIGIN_LABEL, image)
                self.index.put(
                    ImageEntry(
                        store=ARCHIVES,
                        name=target.name,
                        kind="exported",
                        origin=origin,
                        size=size,
                        made=now,
                        used=now,
                    )
                )
        except OSError as error:
            raise ImageArchiveError(
                f"The image {image} could not be exported to {target}: {error.strerror}.",
                remedy="Make room on the disk, or name another file.",
            ) from error
        finally:
            saved.unlink(missing_ok=True)
        return target

    def import_archive(self, runtime: Runtime, path: Path) -> list[ImageRecord]:
        """Load an image from a file into the engine's store.

        Every blob is compared with its digest first. The image's names and content are up to
        whoever made the file: import only what you would run.

        Args:
            runtime: the engine.
            path: a file of :meth:`export_image`, ``docker save`` or ``podman save``.

        Returns:
            The image, once for each of its names.

        Raises:
            ImageArchiveError: the file is not an image archive, or is damaged.
            EngineCommandError: the engine refuses it.
        """
        archive = read_archive(path, verify=True)
        _check_name(archive)
        names = runtime.load_image(path) or list(archive.names)
        origin = archive.labels.get(ORIGIN_LABEL, path.name)
        return [self.record(runtime, name, "imported", origin) for name in names]

    # Building

    def building(self, digest: str, note: str) -> contextlib.AbstractContextManager[None]:
        """Lock one build: a second process waits, and then finds what the first one built."""
        return locked(self.directory / "locks" / f"{digest}.lock", note)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a private directory for a build, and remove it afterwards."""
        path = self.directory / "builds" / secrets.token_hex(6)
        make_private(path.parent)
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _check_name(archive: ImageArchive) -> None:
    """Refuse an archive that has the name of a derived image and is another image."""
    for name in archive.names:
        repository, _, tag = name.rpartition(":")
        if repository == DERIVED and archive.labels.get(LABEL) != tag:
            raise ImageArchiveError(
                f"{archive.path} has the name {name} and is not that image: its label is "
                f"{archive.labels.get(LABEL)!r}.",
                remedy="Export the image again.",
            )
