"""Requirements for pip, as one self-contained file and the local files that it names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rlm_containers.errors import OptionError

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"

# Strict enough to refuse "numpy pandas" and "-r file" here. Versions are for pip to check.
_REQUIREMENT = re.compile(
    rf"{_NAME}\s*(?:\[[A-Za-z0-9._,\s-]*\])?\s*(?:$|;|@\s*\S|\(?\s*(?:===?|[<>!~]=|[<>])\s*\S)"
)

_URL = re.compile(r"(?:[a-z]+\+)?[a-z][a-z0-9.]*://", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(?:whl|zip|tar\.(?:gz|bz2|xz)|tgz)$", re.IGNORECASE)
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_OPTION = re.compile(r"(-[a-z]|--[a-z-]+)(?:\s*=\s*|\s+|(?<=^-[a-z]))(\S.*)$", re.IGNORECASE)
# The only form that pip replaces: capitals, digits and underscores, in braces.
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Everything that pip is given.

    Attributes:
        text: the requirements, one a line, included files among them. Variables are not replaced.
        files: wheels, source archives and constraints on this host, by their names in the build.
    """

    text: str
    files: dict[str, Path] = field(default_factory=dict)

    def parts(self) -> list[str]:
        """List what a hash must cover: the text and the content of the files."""
        digests = []
        for name, path in sorted(self.files.items()):
            with open(path, "rb") as file:
                digests.append(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
        return [self.text, *digests]

    def write(self, directory: Path) -> None:
        """Write everything to a directory for pip, with ``${VARIABLES}`` replaced."""
        text = _VARIABLE.sub(lambda found: os.environ.get(found[1], found[0]), self.text)
        (directory / "requirements.txt").write_text(text, encoding="utf-8")
        for name, path in self.files.items():
            (directory / name).write_bytes(path.read_bytes())


def read_requirements(packages: Iterable[str], file: Path | None) -> Requirements | None:
    """Read and check requirements.

    Args:
        packages: requirements as ``pip install`` takes them, or paths of wheels and archives. Their
            order does not matter.
        file: a file for ``pip install -r``.

    Returns:
        The requirements, or ``None`` if there are none.

    Raises:
        OptionError: a requirement is malformed, a file is missing, or a directory of this host is
            named, which a build cannot see.
    """
    reader = _Reader()
    lines = sorted({reader.package(package) for package in packages})
    if file is not None:
        lines += reader.file(file, "requirements")
    return Requirements(text="\n".join(lines) + "\n", files=reader.files) if lines else None


class _Reader:
    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self._open: list[Path] = []  # the file being read, and those that include it

    def package(self, text: str) -> str:
        """Check one of ``packages``."""
        text = text.strip()
        if _ARCHIVE.search(text) and "://" not in text:
            return self._local(Path(text), text, "packages")
        # Another line would be another requirement, or an option.
        if text.isprintable() and (_URL.match(text) or _REQUIREMENT.match(text)):
            return text
        raise OptionError(
            f"packages: {_short(text)} is not a requirement.",
            remedy='Write each package as a string of its own, such as "numpy" or "pandas==2.*". '
            "Other arguments of pip go into a file: requirements=….",
        )

    def file(self, path: Path, option: str) -> list[str]:
        """Read the lines of a file and of the files that it includes."""
        path = path.expanduser()
        if path.resolve() in self._open:
            raise OptionError(f"{option}: {path} includes itself.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise OptionError(f"{option}: {path} cannot be read: {why}.") from error
        self._open.append(path.resolve())
        try:
            return [line for raw in _lines(text) for line in self._line(raw, path)]
        finally:
            self._open.pop()

    def _line(self, line: str, path: Path) -> Iterator[str]:
        found = _OPTION.match(line)
        if found is None:
            yield self._requirement(line, path)
            return
        name, value = found[1], found[2].strip("'\"")
        local = not _URL.match(value)
        if name in ("-r", "--requirement") and local:
            yield from self.file(path.parent / value, str(path))
        elif name in ("-c", "--constraint") and local:
            yield f"--constraint {self._add(path.parent / value, 'constraints', str(path))}"
        elif name in ("-e", "--editable", "-f", "--find-links") and local:
            raise _unseen(str(path), line)
        else:
            yield line

    def _requirement(self, line: str, path: Path) -> str:
        target = line.partition(";")[0].partition(" --")[0].strip()
        at = re.match(rf"{_NAME}\s*(?:\[[^]]*\])?\s*@\s*(.*)", target)
        target = at[1] if at else target
        if target.startswith("file:"):
            raise _unseen(str(path), line)
        if _URL.match(target) or not ("/" in target or _ARCHIVE.search(target)):
            return line
        return line.replace(target, self._local(path.parent / target, target, str(path)))

    def _local(self, path: Path, text: str, origin: str) -> str:
        if not _ARCHIVE.search(text):
            raise _unseen(origin, text)
        return "./" + self._add(path, "", origin, keep=True)

    def _add(self, path: Path, prefix: str, option: str, *, keep: bool = False) -> str:
        """Add a file of this host, and return its name in the build."""
        path = path.expanduser().absolute()
        if not path.is_file():
            raise OptionError(f"{option}: there is no file {path}.")
        # pip reads tags from a wheel's name, so the name must stay.
        name = path.name if keep else f"{prefix}-{len(self.files)}.txt"
        if self.files.setdefault(name, path) != path or name == "requirements.txt":
            raise OptionError(f"{option}: two files have the name {name}.")
        return name


def _lines(text: str) -> Iterator[str]:
    """Yield logical lines: continued lines joined, comments removed. Comments do not continue."""
    begun = ""
    for line in text.splitlines():
        comment = line.lstrip().startswith("#")
        if line.endswith("\\") and not comment:
            begun += line[:-1] + " "
            continue
        whole = begun + (" " + line if comment else line)
        begun = ""
        if stripped := _COMMENT.sub("", whole).strip():
            yield stripped
    if stripped := _COMMENT.sub("", begun).strip():
        yield stripped


def _unseen(origin: str, line: str) -> OptionError:
    return OptionError(
        f"{origin}: {_short(line)} is a directory of this host, which a build cannot see.",
        remedy="Build a wheel of it (`pip wheel --no-deps DIRECTORY`) and name that.",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
