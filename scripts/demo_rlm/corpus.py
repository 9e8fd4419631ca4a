"""The long text, the question about it, and the exact part of the answer."""

from __future__ import annotations

import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

TOP = 8
HEADER = "### MODULE"

# A regular expression and not `ast`: the container's Python may be older than the host's, and its
# parser would refuse part of the text.
RULE = r"^(?:async def|def|class) [A-Za-z]"

QUESTION = f"""\
Which eight modules in this text define the most public functions and classes at their top level, \
and what is each of them for? The text is the source of Python's standard library; every module \
starts with a line "{HEADER} name". Count the lines that match {RULE} (on a tie the name that \
sorts first wins). Answer with one line per module, most first: the count, the module's name, and \
one plain sentence, which an llm_query writes that is shown the start of the module's docstring."""

# Tests, tables, generated texts, demonstrations, other people's packages, and modules that some
# distributions of Python leave out.
_SKIPPED = frozenset(
    {
        *("test", "tests", "encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo"),
        *("site-packages", "dist-packages", "ensurepip", "tkinter", "msilib"),
    }
)
_LONG = 1_000_000


class CorpusError(Exception):
    """This Python's standard library is no suitable text."""


@dataclass(frozen=True)
class Corpus:
    """The source of a standard library's public modules, each under a header line."""

    text: str
    modules: int

    @property
    def words(self) -> str:
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"{len(self.text):,} characters: the source of {self.modules} modules of Python "
            f"{version}'s standard library"
        )


def pack(root: Path | None = None) -> Corpus:
    """Read this Python's standard library."""
    root = root or Path(sysconfig.get_path("stdlib"))
    pieces: dict[str, str] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if any(p in _SKIPPED or p.startswith(("_", "config-")) for p in parts):
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        pieces[".".join(parts)] = source if source.endswith("\n") else source + "\n"
    text = "".join(f"{HEADER} {name}\n{pieces[name]}" for name in sorted(pieces))
    if len(text) < _LONG or len(_split(text)) != len(pieces):
        raise CorpusError(
            f"{root} holds {len(pieces)} modules in {len(text):,} characters, too little for a "
            "long text. Use a Python whose standard library is there as source files."
        )
    return Corpus(text, len(pieces))


def ranking(text: str, top: int = TOP) -> list[tuple[int, str]]:
    """The exact part of the answer, computed on the host."""
    counts = {name: len(re.findall(f"(?m){RULE}", body)) for name, body in _split(text).items()}
    names = sorted(counts, key=lambda name: (-counts[name], name))[:top]
    return [(counts[name], name) for name in names]


def differences(answer: str, expected: list[tuple[int, str]]) -> list[str]:
    """The parts of ``expected`` that are not in the answer, in this order, each on one line."""
    lines = answer.splitlines()
    missing = []
    for count, name in expected:
        row = re.compile(rf"(?<![\w.]){count}\b.*(?<![\w.]){re.escape(name)}(?!\w|\.\w)")
        at = next((i for i, line in enumerate(lines) if row.search(line)), None)
        if at is None:
            missing.append(f"{count} {name}")
        else:
            lines = lines[at + 1 :]
    return missing


def _split(text: str) -> dict[str, str]:
    parts = re.split(rf"(?m)^{HEADER} (\S+)\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
