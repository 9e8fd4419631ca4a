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
from typing import Any

from rlm_containers.errors import ConfigError, OptionError
from rlm_containers.options.file import CONFIG_VARIABLE, ConfigFile, read_config
from rlm_containers.options.options import DEFAULT_IMAGE, SandboxOptions, unknown_option
from rlm_containers.options.texts import readings, resolved, taken

#: What every variable's name begins with.
PREFIX = "RLM_CONTAINERS_"

#: Variables of that prefix that are no options: this one's, and those of the repository's scripts.
_OTHER_VARIABLES = re.compile(
    rf"{CONFIG_VARIABLE}|{PREFIX}(?:TEST_.*|BASE_IMAGE_CACHE|PYTHON|VENV)"
)

_PROFILES = "profiles"

_NAMES = tuple(field.name for field in dataclasses.fields(SandboxOptions))

# These say the same as to leave them out.
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
        """The value for people to see: what may be secret is left out."""
        if self.name == "env" and isinstance(self.value, Mapping):
            return "{" + ", ".join(f"{name!r}: …" for name in self.value) + "}"
        return repr(self.value)


@dataclass(frozen=True)
class _Found:
    """An option that is set somewhere. ``origin`` is text, or says so when it is asked."""

    value: Any
    origin: object


@dataclass(frozen=True)
class _Place:
    """A key of the configuration file. Its line takes as long to find as the file to read."""

    file: ConfigFile
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return self.file.where(*self.keys)


def configured_options(arguments: Mapping[str, Any], also: Iterable[str] = ()) -> SandboxOptions:
    """The options of a sandbox.

    Args:
        arguments: keyword arguments as a user wrote them; they decide where they are given.
        also: names that the caller itself accepts, to be suggested for a misspelt one.

    Raises:
        OptionError: an argument is unknown (the message names the nearest that is not), or has a
            wrong type or value.
        ConfigError: the same of a variable or of the file; the message says which one, with the
            line. Or the file cannot be read, or the profile is not in it.
    """
    for name in arguments:
        if name not in _NAMES:
            raise unknown_option(name, {*_NAMES, *also})
    return _options(_settings(arguments))


def explain_options(arguments: Mapping[str, Any] | None = None) -> list[Setting]:
    """Every option, its value, and where that comes from.

    Args:
        arguments: as for :func:`configured_options`.

    Raises:
        OptionError, ConfigError: as there.
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
    """Check the whole file, profiles that nobody has chosen too, and the variables.

    Returns:
        The names of its profiles.

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
    """Environment variables that look like options and are none, such as misspelt ones."""
    known = {PREFIX + name.upper() for name in _NAMES}
    return sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name not in known and not _OTHER_VARIABLES.fullmatch(name)
    )


def _settings(arguments: Mapping[str, Any]) -> dict[str, _Found]:
    """What was set anywhere; the options that were not are not in it."""
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
        # Each is right by itself, or was given as an argument; together they are not.
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
        variable = PREFIX + name.upper()
        if text := os.environ.get(variable):
            yield name, _Found(taken(name, readings(text), variable), variable)


def _from_file(file: ConfigFile) -> Iterator[tuple[str, _Found]]:
    profiles = file.content.get(_PROFILES, {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise ConfigError(
            f"{file.where(_PROFILES)}: {_PROFILES} must be tables.",
            remedy=f"Write [{_PROFILES}.NAME], and the options below it.",
        )
    # All names at once: a misspelt one in a profile shows before the profile is wanted.
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
    if name not in profiles:
        there = f"There are: {', '.join(sorted(profiles))}." if profiles else "There are none."
        where = file.path if file else "the configuration file, which does not exist"
        raise ConfigError(
            f"There is no profile {name!r} in {where}.",
            remedy=f"{there} It was chosen by: {chosen.origin}.",
        )
    assert file is not None
    yield from _from_table(file, profiles[name], _PROFILES, name)


def _from_table(
    file: ConfigFile, table: Mapping[str, Any], *above: str
) -> Iterator[tuple[str, _Found]]:
    for name, value in table.items():
        place = _Place(file, (*above, name))
        meanings = [value, None] if value == "none" else [value]
        found = taken(name, meanings, place)
        yield name, _Found(resolved(name, found, file), place)


def _unknown(file: ConfigFile, key: str, *above: str) -> ConfigError:
    what = unknown_option(key, _NAMES)
    return ConfigError(
        f"{file.where(*above, key)}: there is no option {key!r}.", remedy=what.remedy
    )
