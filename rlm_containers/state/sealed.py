"""Files of JSON that only the host writes: with their format, and a checksum of all they say.

A file that cannot be read is in one of three states, and no two of them are treated alike. It may
not be there. It may be damaged. Or it may be whole, and this process cannot read it: the disk
failed, another user owns it, a later version wrote it. Only the first means "nothing is kept here".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlm_containers.errors import SessionStateError
from rlm_containers.state.hostfiles import open_regular

#: The format of these files. The first had no checksum.
FORMAT = 2

#: Bytes of a file that are read.
_MAX_SIZE = 256 * 1024**2


class DamagedFileError(ValueError):
    """A file is not what was written."""


class UnreadableFileError(SessionStateError):
    """A file is there and may be whole, but this process cannot read it."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}.",
            remedy="Nothing has been changed. Make the file readable, or use the version of "
            "rlm-containers that wrote it.",
        )


def seal(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object as the contents of a file."""
    body = {**content, "format": FORMAT}
    return json.dumps({**body, "checksum": _checksum(body)}).encode()


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file of :func:`seal`, or of the format before it, which had no checksum.

    Returns:
        The JSON object, as format 1 has it.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is not what was written.
        UnreadableFileError: it cannot be read, or a later version has written it.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > _MAX_SIZE:
        raise UnreadableFileError(f"{path} has more than {_MAX_SIZE:,} bytes")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise DamagedFileError(f"{path} is damaged: it names no format")
    if raw["format"] > FORMAT:
        raise UnreadableFileError(
            f"{path} has format {raw['format']}, and this version of rlm-containers reads formats "
            f"up to {FORMAT}"
        )
    checksum = raw.pop("checksum", None)
    if (raw["format"] == FORMAT) != (checksum is not None) or raw["format"] < 1:
        raise DamagedFileError(f"{path} is damaged: its format is not that of its contents")
    if checksum is not None and checksum != _checksum(raw):
        raise DamagedFileError(f"{path} is damaged: its checksum does not match")
    return {**raw, "format": 1}


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
