"""What a session is, as JSON beside it: written by the host, from what the guest reports.

The host never loads ``state.dill``, so this is how anybody but a container knows what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rlm_containers.interpreter import UnsavedVariable
from rlm_containers.state.hostfiles import replace_file

FORMAT = 1

#: Variables, and characters of a name, a type and a reason, that are believed of a report.
_COUNT = 10_000
_TEXT = 300

#: Bytes of a file that are read.
_MAX_SIZE = 64 * 1024**2


@dataclass(frozen=True)
class SavedVariable:
    """A variable in the saved state.

    Attributes:
        name: its name.
        type: its type's name.
        size: bytes that it takes in the state; what it shares with other variables counts for
            the first of them, and long strings for each that holds them.
    """

    name: str
    type: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a session, or was of a snapshot.

    Attributes:
        created: when it was made: ISO 8601, in UTC.
        used: when something of it last changed, likewise.
        python: the version of the Python that has run in it last; empty if none has.
        image: the image that it ran in.
        engine: the engine, such as ``"docker"``.
        variables: what was saved.
        unsaved: what could not be.
        state: the length and the time of the state file that this is about, which tell whether
            there is a newer one.
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
        """That of a session that is being made."""
        moment = now()
        return cls(created=moment, used=moment)

    @property
    def minor(self) -> str:
        """The minor version of its Python, such as ``"3.11"``; code is of one such version."""
        return ".".join(self.python.split(".")[:2])

    def reported(self, report: Mapping[str, Any]) -> Self:
        """The same with what a guest says of its checkpoint, which may be anything."""
        if report.get("error") or not isinstance(report.get("variables"), list):
            return self
        variables = tuple(
            SavedVariable(str(entry[0])[:_TEXT], str(entry[1])[:_TEXT], entry[2])
            for entry in report["variables"][:_COUNT]
            if isinstance(entry, list) and len(entry) == 3 and _is_size(entry[2])
        )
        raw = report.get("unsaved")
        unsaved = tuple(
            UnsavedVariable(*(str(part)[:_TEXT] for part in entry))
            for entry in (raw[:_COUNT] if isinstance(raw, list) else ())
            if isinstance(entry, list) and len(entry) == 3
        )
        state = report.get("state")
        if not isinstance(state, list) or len(state) != 2 or not all(map(_is_size, state)):
            state = [0, 0]
        return replace(self, variables=variables, unsaved=unsaved, state=(state[0], state[1]))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, raw: object) -> Self:
        """The manifest that some JSON is, which may come from a stranger.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError("it is of no known format")
        texts = {name: raw.get(name) for name in ("created", "used", "python", "image", "engine")}
        if not all(isinstance(text, str) and len(text) <= _TEXT for text in texts.values()):
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
        """Read one.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        try:
            with path.open("rb") as file:
                return cls.from_json(json.loads(file.read(_MAX_SIZE)))
        except (OSError, RecursionError) as error:
            raise ValueError(str(error)) from error

    def write(self, path: Path) -> None:
        """Write it, in place of the one that is there."""
        with replace_file(path) as file:
            file.write(json.dumps(self.to_json(), indent=1).encode())


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def check_time(value: object) -> str:
    """A time as :func:`now` writes it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or len(value) > _TEXT:
        raise ValueError("a time is no text")
    datetime.fromisoformat(value)
    return value


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _rows(raw: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    rows = raw.get(name)
    if not isinstance(rows, list) or len(rows) > _COUNT:
        raise ValueError(f"its {name} are no list, or too long a one")
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"its {name} are no objects")
    return rows


def _text(row: Mapping[str, Any], name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or len(text) > _TEXT:
        raise ValueError(f"the {name} of a variable is no text")
    return text


def _size(row: Mapping[str, Any]) -> int:
    size = row.get("size")
    if not _is_size(size):
        raise ValueError("the size of a variable is no number")
    assert isinstance(size, int)
    return size
