"""Where the options of a sandbox come from: arguments, variables, a profile, a file, defaults.

The first of these that has an option decides it, as a whole::

    Sandbox(memory=…)                  keyword arguments
    RLM_CONTAINERS_MEMORY=…            environment variables
    [profiles.NAME]                    the profile that profile=… or RLM_CONTAINERS_PROFILE chooses
    memory = …                         the file itself
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm_containers.errors import ConfigError, OptionError
from rlm_containers.options.file import CONFIG_VARIABLE, ConfigFile, read_config
from rlm_containers.options.options import (
    DEFAULT_IMAGE,
    SandboxOptions,
    read_option,
    unknown_option,
)
from rlm_containers.options.values import shown_option
from runtimes.text import brief

#: The variable of an option is this and its name in capitals.
_PREFIX = "RLM_CONTAINERS_"

#: Variables with this prefix that set no option; those of the repository's scripts among them.
_OTHER_VARIABLES = re.compile(
    rf"{CONFIG_VARIABLE}|{_PREFIX}(?:TEST_.*|BASE_IMAGE_CACHE|PYTHON|VENV)"
)

_PROFILES = "profiles"

# Options that name a file. In the configuration file they are relative to it.
_PATHS = ("requirements", "dockerfile")

_NAMES = tuple(field.name for field in dataclasses.fields(SandboxOptions))

# An argument with this value counts as left out.
_UNSET: dict[str, object] = {
    "image": DEFAULT_IMAGE,
    "profile": None,
    "runtime": None,
    "setup_code": None,
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An option's value, and where it comes from.

    Attributes:
        name: the option's name.
        value: its value.
        origin: ``"default"``, ``"argument"``, the name of a variable, or a file and a line.
    """

    name: str
    value: object
    origin: str

    @property
    def shown(self) -> str:
        """The value for people to see, without what may be secret."""
        return shown_option(self.name, self.value)


@dataclass(frozen=True)
class _Found:
    """An option that is set somewhere. ``str(origin)`` says where."""

    value: Any
    origin: object


@dataclass(frozen=True)
class _Place:
    """A key of the configuration file. Its line is found only when it is shown: that is slow."""

    file: ConfigFile
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return self.file.where(*self.keys)


def configured_options(arguments: Mapping[str, Any], also: Iterable[str] = ()) -> SandboxOptions:
    """Read the options of a sandbox from all sources.

    Args:
        arguments: keyword arguments as a user wrote them; they win over every other source.
        also: names that the caller itself accepts, to be suggested for a misspelt one.

    Raises:
        OptionError: an argument is unknown (the message names the nearest that is not), or has a
            wrong type or value.
        ConfigError: a variable or the file is wrong; the message names it, with the line. Or the
            file cannot be read, or the profile is not in it.
    """
    for name in arguments:
        if name not in _NAMES:
            raise unknown_option(name, {*_NAMES, *also})
    return _options(_settings(arguments))


def explain_options(arguments: Mapping[str, Any] | None = None) -> list[Setting]:
    """List every option with its value and where that comes from.

    Args:
        arguments: as for :func:`configured_options`.

    Raises:
        OptionError, ConfigError: as for :func:`configured_options`.
    """
    settings = _settings(arguments or {})
    options = _options(settings)
    return [
        Setting(
            name=name,
            value=getattr(options, name),
            origin=str(settings[name].origin) if name in settings else "default",
        )
        for name in _NAMES
    ]


def check_config() -> list[str]:
    """Check the variables and the whole file, every profile included.

    Returns:
        The names of the file's profiles.

    Raises:
        ConfigError: something is wrong.
    """
    file = read_config()
    profiles = list(file.content.get(_PROFILES, {})) if file else []
    configured_options({})
    for profile in profiles:
        configured_options({"profile": profile})
    return profiles


def unknown_variables() -> list[str]:
    """List the environment variables that look like options and are none: misspelt ones."""
    known = {_PREFIX + name.upper() for name in _NAMES}
    return sorted(
        name
        for name in os.environ
        if name.startswith(_PREFIX) and name not in known and not _OTHER_VARIABLES.fullmatch(name)
    )


def _settings(arguments: Mapping[str, Any]) -> dict[str, _Found]:
    """Find the options that are set anywhere, each where it is decided."""
    file = read_config()
    given, variables = dict(_from_arguments(arguments)), dict(_from_variables())
    in_file = dict(_from_file(file)) if file else {}
    profile = given.get("profile") or variables.get("profile") or in_file.get("profile")
    in_profile = dict(_from_profile(file, profile)) if profile else {}
    return {**in_file, **in_profile, **variables, **given}


def _options(settings: Mapping[str, _Found]) -> SandboxOptions:
    try:
        return SandboxOptions(**{name: found.value for name, found in settings.items()})
    except OptionError as error:
        # Values from variables and the file are checked one by one before: an argument is wrong,
        # or two options contradict each other.
        concerned = [
            f"{name} is set in {found.origin}"
            for name, found in settings.items()
            if found.origin != "argument" and re.search(rf"\b{name}\b", error.what)
        ]
        if not concerned:
            raise
        raise ConfigError(
            error.what, remedy=f"{error.remedy} Here {' and '.join(concerned)}.".strip()
        ) from None


def _from_arguments(arguments: Mapping[str, Any]) -> Iterator[tuple[str, _Found]]:
    for name, value in arguments.items():
        if name not in _UNSET or value is not _UNSET[name]:
            yield name, _Found(value, "argument")


def _from_variables() -> Iterator[tuple[str, _Found]]:
    for name in _NAMES:
        variable = _PREFIX + name.upper()
        if text := os.environ.get(variable):
            yield name, _Found(_read(name, text, variable, typed=False), variable)


def _from_file(file: ConfigFile) -> Iterator[tuple[str, _Found]]:
    profiles = file.content.get(_PROFILES, {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise ConfigError(
            f"{file.where(_PROFILES)}: {_PROFILES} must be tables.",
            remedy=f"Write [{_PROFILES}.NAME], and the options below it.",
        )
    # Check the names in all profiles, so that a misspelt one shows before its profile is chosen.
    for name, profile in profiles.items():
        for key in profile:
            if key not in _NAMES or key == "profile":
                raise _unknown(file, key, _PROFILES, name)
    for key in file.content:
        if key not in _NAMES and key != _PROFILES:
            raise _unknown(file, key)
    content = {key: value for key, value in file.content.items() if key != _PROFILES}
    yield from _from_table(file, content)


def _from_profile(file: ConfigFile | None, chosen: _Found) -> Iterator[tuple[str, _Found]]:
    profiles = file.content.get(_PROFILES, {}) if file else {}
    name = chosen.value
    if not isinstance(name, str):
        return  # the check of the options says so
    if file is None or name not in profiles:
        known = f"There are: {', '.join(sorted(profiles))}." if profiles else "There are none."
        where = file.path if file else "the configuration file, which does not exist"
        raise ConfigError(
            f"There is no profile {brief(name)} in {where}.",
            remedy=f"{known} It was chosen by: {chosen.origin}.",
        )
    yield from _from_table(file, profiles[name], _PROFILES, name)


def _from_table(
    file: ConfigFile, table: Mapping[str, Any], *above: str
) -> Iterator[tuple[str, _Found]]:
    for name, value in table.items():
        place = _Place(file, (*above, name))
        found = _read(name, value, place, typed=True)
        yield name, _Found(_resolve(name, found, file.path.parent), place)


def _read(name: str, value: object, origin: object, *, typed: bool) -> object:
    """Read an option's value; see :func:`read_option`.

    Raises:
        ConfigError: the option does not take it; the message names the origin.
    """
    try:
        return read_option(name, value, typed=typed)
    except OptionError as error:
        raise ConfigError(f"{origin}: {error.what}", remedy=error.remedy) from None


def _resolve(name: str, value: object, folder: Path) -> object:
    """Make the paths in a value of the file relative to its folder."""
    if name in _PATHS and isinstance(value, str) and "\n" not in value:
        return str(folder / Path(value).expanduser())
    if name == "packages" and isinstance(value, (list, tuple)):
        return [
            str(folder / Path(word).expanduser()) if word.startswith(("./", "../", "~/")) else word
            for word in value
        ]
    return value


def _unknown(file: ConfigFile, key: str, *above: str) -> ConfigError:
    what = unknown_option(key, _NAMES)
    return ConfigError(
        f"{file.where(*above, key)}: there is no option {brief(key)}.", remedy=what.remedy
    )
