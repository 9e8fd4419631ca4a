"""What is known of a session's state, as JSON beside it.

The host writes it from what the guest reports. It never loads ``state.dill``, so outside of a
container nothing else tells what is in that file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeGuard

from rlm_containers.interpreter import UnsavedVariable
from rlm_containers.state.hostfiles import replace_file
from rlm_containers.state.sealed import read_sealed, seal

FORMAT = 1

#: Variables of a report that are kept, and characters of a name, a type, a reason and the like.
_MAX_COUNT = 10_000
_MAX_TEXT = 300


@dataclass(frozen=True)
class SavedVariable:
    """A variable in the saved state.

    Attributes:
        name: its name.
        type: its type's name.
        size: bytes that it takes in the state. Objects that several variables share count for the
            first of them, but long strings for each.
    """

    name: str
    type: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of the state of a session or a snapshot.

    Attributes:
        created: when the session was made: ISO 8601, in UTC.
        used: when it last changed, likewise.
        python: the version of Python that ran in it last; empty if none has.
        image: the image of that container.
        engine: the engine of that container, such as ``"docker"``.
        variables: what was saved.
        unsaved: what could not be saved.
        state: the length in bytes and the modification time in nanoseconds of the state file that
            this describes. If the file has others, the manifest is out of date.
    """

    created: str
    used: str
    python: str = ""
    image: str = ""
    engine: str = ""
    variables: tuple[SavedVariable, ...] = ()
    unsaved: tuple[UnsavedVariable, ...] = ()
    state: tuple[int, int] = (0, 0)

    @classmethod
    def new(cls) -> Self:
        """Return the manifest of an empty session, made now."""
        moment = now()
        return cls(created=moment, used=moment)

    @property
    def minor(self) -> str:
        """The minor version of Python, such as ``"3.11"``: pickled code works in one only."""
        return ".".join(self.python.split(".")[:2])

    def reported(self, report: Mapping[str, Any]) -> Self:
        """Return a copy with what a guest reports of a checkpoint. The report may be anything."""
        if report.get("error") or not isinstance(report.get("variables"), list):
            return self
        variables = tuple(
            SavedVariable(str(entry[0])[:_MAX_TEXT], str(entry[1])[:_MAX_TEXT], entry[2])
            for entry in report["variables"][:_MAX_COUNT]
            if isinstance(entry, list) and len(entry) == 3 and _is_size(entry[2])
        )
        raw = report.get("unsaved")
        unsaved = tuple(
            UnsavedVariable(*(str(part)[:_MAX_TEXT] for part in entry))
            for entry in (raw[:_MAX_COUNT] if isinstance(raw, list) else ())
            if isinstance(entry, list) and len(entry) == 3
        )
        state = report.get("state")
        if not isinstance(state, list) or len(state) != 2 or not all(map(_is_size, state)):
            state = [0, 0]
        return replace(self, variables=variables, unsaved=unsaved, state=(state[0], state[1]))

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, raw: object) -> Self:
        """Check JSON that may come from a stranger.

        Raises:
            ValueError: it is no manifest.
        """
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError("it is of no known format")
        texts = {name: raw.get(name) for name in ("created", "used", "python", "image", "engine")}
        if not all(isinstance(text, str) and len(text) <= _MAX_TEXT for text in texts.values()):
            raise ValueError("a text in it is none")
        for name in ("created", "used"):
            check_time(texts[name])
        variables, unsaved = _rows(raw, "variables"), _rows(raw, "unsaved")
        state = raw.get("state")
        if not isinstance(state, list) or len(state) != 2 or not all(map(_is_size, state)):
            raise ValueError("its state is not described")
        return cls(
            **{name: str(text) for name, text in texts.items()},
            variables=tuple(
                SavedVariable(_text(row, "name"), _text(row, "type"), _size(row))
                for row in variables
            ),
            unsaved=tuple(
                UnsavedVariable(_text(row, "name"), _text(row, "type"), _text(row, "reason"))
                for row in unsaved
            ),
            state=(state[0], state[1]),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
            UnreadableFileError: it cannot be read, or a later version has written it.
        """
        return cls.from_json(read_sealed(path))

    def write(self, path: Path, *, durable: bool = False) -> None:
        """Write it to a file.

        Args:
            path: the file to make or replace.
            durable: whether it must survive a power failure once this returns.

        Raises:
            OSError: it cannot be written.
        """
        with replace_file(path, durable=durable) as file:
            file.write(seal(self.to_json()))


def now() -> str:
    """Return the present time: ISO 8601, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def check_time(value: object) -> str:
    """Return a value if it is a time as :func:`now` writes it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError("a time is no text")
    datetime.fromisoformat(value)
    return value


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _rows(raw: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    rows = raw.get(name)
    if not isinstance(rows, list) or len(rows) > _MAX_COUNT:
        raise ValueError(f"its {name} are no list, or too long a one")
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"its {name} are no objects")
    return rows


def _text(row: Mapping[str, Any], name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise ValueError(f"the {name} of a variable is no text")
    return text


def _size(row: Mapping[str, Any]) -> int:
    size = row.get("size")
    if not _is_size(size):
        raise ValueError("the size of a variable is no number")
    return size
