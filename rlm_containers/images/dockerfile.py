"""Reads a user's Dockerfile: the images below it, and the files that it copies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlm_containers.errors import OptionError

_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)\s+(.*)", re.DOTALL)
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S*))?\s+")
_HEREDOC = re.compile(r"<<-?\s*([\"']?)([A-Za-z_][A-Za-z0-9_]*)\1")


@dataclass(frozen=True, kw_only=True)
class Dockerfile:
    """A Dockerfile.

    Attributes:
        text: the text to build, which declares ``BASE_IMAGE`` and has a ``FROM``.
        context: the directory whose files the build sees; ``None`` for none.
        bases: the images named in ``FROM``, except for its own stages and ``BASE_IMAGE``.
        on_image: whether it builds on the sandbox's image, ``BASE_IMAGE``.
        sources: what it copies from the context, as written; ``None`` if that is unknown.
    """

    text: str
    context: Path | None
    bases: tuple[str, ...]
    on_image: bool
    sources: tuple[str, ...] | None

    def parts(self) -> list[str]:
        """List what a hash must cover: the text, and the files that go into the image."""
        parts = [self.text]
        if self.context is None:
            return parts
        patterns = ("*",) if self.sources is None else self.sources
        found: set[Path] = set()
        for pattern in patterns:
            relative = pattern.strip("/").removeprefix("./")
            # The builder complains about files that are missing or outside the context.
            if relative in ("", "."):
                found.add(self.context)
            elif ".." not in Path(relative).parts:
                found.update(self.context.glob(relative))
        for path in sorted(found):
            parts += [f"{file.relative_to(self.context)} {_state(file)}" for file in _below(path)]
        return parts


def read_dockerfile(given: str) -> Dockerfile:
    """Read a Dockerfile.

    Args:
        given: its path, or its text if it has several lines. Without a ``FROM`` it builds on the
            sandbox's image, as with ``FROM ${BASE_IMAGE}``.

    Raises:
        OptionError: the file cannot be read, or is not UTF-8.
    """
    if "\n" in given:
        text, context = given, None
    else:
        path = Path(given).expanduser().absolute()
        try:
            text, context = path.read_text(encoding="utf-8-sig"), path.parent
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise OptionError(
                f"dockerfile: {path} cannot be read: {why}.",
                remedy="Name a file, or give the text itself, with more than one line.",
            ) from error
    instructions = list(_instructions(text))
    bases, sources = _read(instructions)
    stands_on = [rest for name, rest in instructions if name == "FROM"]
    on_image = not stands_on or any("BASE_IMAGE" in rest for rest in stands_on)
    if not stands_on:
        text = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n" + text
    elif not re.search(r"^\s*ARG\s+BASE_IMAGE\b", text, re.MULTILINE | re.IGNORECASE):
        # Directives such as `# syntax=` must stay first.
        head = re.match(r"(?:#[^\n]*\n)*", text)
        end = head.end() if head else 0
        text = f"{text[:end]}ARG BASE_IMAGE\n{text[end:]}"
    return Dockerfile(text=text, context=context, bases=bases, on_image=on_image, sources=sources)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction's name, in capitals, and its arguments."""
    directive = re.match(r"\s*#\s*escape\s*=\s*`", text, re.IGNORECASE)
    escape = "`" if directive else "\\"
    begun, ends = "", list[str]()
    for line in text.splitlines():
        if ends:  # in a here-document
            if line.strip() == ends[0]:
                ends.pop(0)
            continue
        if line.lstrip().startswith("#") or (begun and not line.strip()):
            continue
        if line.rstrip().endswith(escape):
            begun += line.rstrip()[:-1] + " "
            continue
        found = _INSTRUCTION.match(begun + line)
        begun = ""
        if found:
            name = found[1].upper()
            if name in ("RUN", "COPY", "ADD"):
                ends = [match[2] for match in _HEREDOC.finditer(found[2])]
            yield name, found[2].strip()


def _read(instructions: list[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Find the images that are named, and the files of the context, if all are known."""
    stages: set[str] = set()
    bases: dict[str, None] = {}
    sources: dict[str, None] = {}
    known = True
    for name, words in instructions:
        rest = words
        flags: dict[str, str] = {}
        while flag := _FLAG.match(rest):
            if flag[1] == "mount" and "type=bind" in (flag[2] or "") and "from=" not in flag[2]:
                known = False
            flags[flag[1]] = flag[2] or ""
            rest = rest[flag.end() :]
        if name == "FROM":
            named = rest.split()
            image = named[0] if named else ""
            if "$" not in image and image not in stages and image != "scratch":
                bases[image] = None
            if len(named) == 3:
                stages.add(named[2])
        elif name in ("COPY", "ADD") and "from" not in flags:
            for source in _words(rest)[:-1]:
                if "$" in source:
                    known = False
                elif "://" not in source and not source.startswith(("<<", "git@")):
                    sources[source] = None
        elif name == "ONBUILD":
            known = False
    return tuple(bases), tuple(sources) if known else None


def _words(rest: str) -> list[str]:
    if rest.startswith("["):
        try:
            found = json.loads(rest)
            if isinstance(found, list) and all(isinstance(word, str) for word in found):
                return found
        except ValueError:
            pass
    try:
        return shlex.split(rest)
    except ValueError:
        return rest.split()


def _below(path: Path) -> Iterator[Path]:
    """Yield a file, or all files below a directory. No symlink is followed."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, names, files in os.walk(path):
        names.sort()
        links = [name for name in names if Path(folder, name).is_symlink()]
        for name in sorted([*files, *links]):
            yield Path(folder, name)


def _state(path: Path) -> str:
    """Describe what a builder copies of a file: its mode and its content."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode):
        return "special"
    with open(path, "rb") as file:
        return f"{status.st_mode & 0o777:o} {hashlib.file_digest(file, 'sha256').hexdigest()}"
