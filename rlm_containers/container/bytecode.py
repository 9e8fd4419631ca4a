"""The byte code of an image's Python, made once by a container that ran no cell.

Official images have none for the standard library, so every guest would compile what it imports:
half of a start. The first container of an image returns its byte code before it is told anything.
It is kept in the user's cache, and sent to every later container of that image, whose guest uses
what still belongs to its sources. The host never reads it.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode
from pathlib import Path

from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import ContainersError, EngineTimeoutError
from rlm_containers.guest import wire
from rlm_containers.state import cache_directory, make_private, replace_file
from runtimes import Runtime
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: The most bytes that are kept. Those of Python 3.13 are 0.6 MB.
_MAX_SIZE = 8 * 1024 * 1024

#: The files by engine, image and bundle, so that each engine is asked once for an image.
_known: dict[tuple[Runtime, str, str], ByteCode] = {}


class ByteCode:
    """The byte code of one image.

    Args:
        path: the file for it; ``None`` if it cannot be kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._content: bytes | None = None
        if path is not None:
            try:
                make_private(path.parent)  # before: others could have put something there
                self._content = path.read_bytes()
            except OSError:
                pass  # there is none yet

    @classmethod
    def of(cls, runtime: Runtime, image: str, bundle: Bundle) -> ByteCode:
        """Return that of an image, for a guest of this bundle.

        Args:
            runtime: the engine, which is asked once for each image.
            image: the image's name.
            bundle: what a guest consists of, which decides what it imports.

        Raises:
            EngineTimeoutError: the engine hangs.
        """
        key = (runtime, image, bundle.digest)
        if key not in _known:
            try:
                record = runtime.inspect_image(image)
            except EngineTimeoutError:
                raise
            except ContainersError as error:
                logger.debug("no byte code is kept for %s: %s", image, error)
                return cls(None)  # it may be pulled soon
            path = None
            if record.content:  # of its layers: another image may get its name
                digest = hashlib.sha256(f"{record.content}\0{bundle.digest}".encode())
                path = cache_directory() / "bytecode" / digest.hexdigest()[:32]
            _known[key] = cls(path)
        return _known[key]

    @property
    def frame(self) -> bytes:
        """What a guest is sent: a frame, which is empty if there is no byte code."""
        return wire.encode(wire.MODULES, self._content or b"")

    @property
    def is_wanted(self) -> bool:
        """Whether the next container should return it."""
        return self._path is not None and self._content is None

    def give_up(self) -> None:
        """Do not ask for it again in this process."""
        self._content = b""

    def keep(self, text: object) -> None:
        """Keep what a container has returned that was told nothing.

        Args:
            text: base64, unchecked. An empty one says that nothing had to be compiled.
        """
        if self._path is None or not isinstance(text, str):
            self.give_up()
            return
        try:
            content = b64decode(text, validate=True)
            if len(content) > _MAX_SIZE:
                raise ValueError(f"it has {len(content)} bytes")
            with replace_file(self._path) as file:
                file.write(content)
        except (binascii.Error, ValueError, OSError) as error:
            logger.info("the byte code of an image is not kept: %s", error)
            self.give_up()
        else:
            self._content = content
