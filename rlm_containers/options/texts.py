"""What the text of a variable, or a value of the file, means for an option.

No option's type is known here: a value is right if :class:`SandboxOptions` takes it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlm_containers.errors import ConfigError, OptionError
from rlm_containers.options.file import ConfigFile
from rlm_containers.options.options import SandboxOptions

# The names of files, which are relative to the configuration file there.
_PATHS = ("requirements", "dockerfile")


def readings(text: str) -> Iterator[object]:
    """What the text of a variable may mean, for the option to take the first that it can."""
    yield text
    if text == "none":
        yield None
    import tomllib  # noqa: PLC0415  # for lists, numbers and the like only

    try:
        yield tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        words = shlex.split(text)
    except ValueError:
        return
    if all("=" in word for word in words):
        yield dict(word.split("=", 1) for word in words)
    yield words


def accepted(name: str, meanings: Iterable[object]) -> object:
    """The first meaning that an option takes.

    Args:
        name: the option.
        meanings: what its value may mean, the likeliest first.

    Raises:
        OptionError: there is none. It says why the first is not taken.
    """
    refusal: OptionError | None = None
    for value in meanings:
        arguments: dict[str, Any] = {name: value}
        try:
            SandboxOptions(**arguments)
        except OptionError as error:
            refusal = refusal or error
        else:
            return value
    assert refusal is not None
    raise refusal


def taken(name: str, meanings: Iterable[object], origin: object) -> object:
    """The same of a variable or a file.

    Args:
        name: the option.
        meanings: what its value may mean, the likeliest first.
        origin: where that is from, to be named in the error.

    Raises:
        ConfigError: there is none.
    """
    try:
        return accepted(name, meanings)
    except OptionError as error:
        raise ConfigError(f"{origin}: {error.what}", remedy=error.remedy) from None


def resolved(name: str, value: object, file: ConfigFile) -> object:
    """A value of the file's, with its paths as the file means them: relative to itself."""
    folder = file.path.parent
    if name in _PATHS and isinstance(value, str) and "\n" not in value:
        return str(folder / Path(value).expanduser())
    if name == "packages" and isinstance(value, (list, tuple)):
        return [
            str(folder / Path(word).expanduser()) if _is_relative_path(word) else word
            for word in value
        ]
    return value


def _is_relative_path(requirement: str) -> bool:
    return requirement.startswith(("./", "../", "~/"))
