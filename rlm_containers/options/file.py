"""The configuration file: its place, its content (TOML), and the line of each key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from rlm_containers.errors import ConfigError

#: Names another configuration file; ``/dev/null`` for none.
CONFIG_VARIABLE = "RLM_CONTAINERS_CONFIG"


def config_path() -> Path:
    """Find the path of the configuration file, which need not exist."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_config_path("rlm-containers") / "config.toml"


class ConfigFile:
    """A parsed configuration file.

    Args:
        path: the file.
        text: its text.

    Attributes:
        path: the file.
        content: the table that it holds.

    Raises:
        ConfigError: it is not TOML.
    """

    def __init__(self, path: Path, text: str) -> None:
        import tomllib  # noqa: PLC0415  # most users have no file

        self.path = path
        self._text = text
        try:
            self.content: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(
                f"{path} is not TOML: {error}.",
                remedy="Correct it, or set RLM_CONTAINERS_CONFIG to another file.",
            ) from None

    def where(self, *keys: str) -> str:
        """Name the file and the line of a key: ``"/home/me/.config/…/config.toml:3"``."""
        for found, line in self._keys():
            if found == keys:
                return f"{self.path}:{line}"
        return str(self.path)

    def _keys(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Yield the path of every key and the line on which it begins.

        tomllib does not tell the lines. But a TOML statement depends on nothing before it except
        the table it is in. So the shortest run of lines that is valid TOML by itself is a
        statement, however it is quoted, continued or commented.
        """
        import tomllib  # noqa: PLC0415

        table: tuple[str, ...] = ()
        begun: list[str] = []
        start = 1
        for number, line in enumerate(self._text.splitlines(), 1):
            begun.append(line)
            try:
                statement = tomllib.loads("\n".join(begun))
            except tomllib.TOMLDecodeError:
                continue  # the statement goes on
            paths = list(_paths(statement))
            if begun[0].lstrip().startswith("["):
                table = paths[-1] if paths else ()
                yield table, start
            else:
                for path in paths:
                    yield table + path, start
            begun, start = [], number + 1


def read_config() -> ConfigFile | None:
    """Read the configuration file, or return ``None`` if there is none.

    Raises:
        ConfigError: it cannot be read, or is not TOML; or the variable names a missing file.
    """
    path = config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if os.environ.get(CONFIG_VARIABLE):
            raise ConfigError(
                f"There is no file {path}, which {CONFIG_VARIABLE} names.",
                remedy="Make it, or unset the variable.",
            ) from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"The configuration file {path} cannot be read: {why}.",
            remedy="Correct it, or set RLM_CONTAINERS_CONFIG to another file.",
        ) from error
    return ConfigFile(path, text)


def _paths(value: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all keys in a table and in the tables in it, outer ones first."""
    if isinstance(value, list) and len(value) == 1 and above:
        value = value[0]  # of [[a.b]]
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield (*above, key)
            yield from _paths(inner, (*above, key))
