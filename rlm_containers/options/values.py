"""The values that options take: how each is read from text, converted and checked.

Converters return a value of a wrong type as it is; the check that follows refuses it.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TypeGuard

from rlm_containers.errors import OptionError
from rlm_containers.guest import wire
from runtimes import GpuRequest, Mount, Placement
from runtimes.errors import MountError
from runtimes.text import brief, without_credentials, without_env

#: The value of a limit that this library chooses.
AUTO = "auto"

#: An interpreter needs this much, and a container has no fewer processes.
_LEAST_MEMORY = 32 * 1024**2
_LEAST_PIDS = 16
_LEAST_DISK = 1024**2

#: As Linux has it.
_LONGEST_PATH = 4096

_SIZE = re.compile(r"([0-9]{1,18})(?:([kmgt])(i?b)?|b)", re.IGNORECASE)

#: An index, a UUID of a GPU or of a part of one (``MIG-…``), or an index of a part: ``0:1``.
_GPU = re.compile(r"[0-9A-Za-z][0-9A-Za-z:-]*")

_MOUNT_FORM = '"source:target", "source:target:rw" or a Mount'


def readings(text: str) -> Iterator[object]:
    """Yield what a text may mean, the likeliest first, for an option to take what it accepts.

    A text may be itself, ``none``, a number, a value of TOML, words as a shell splits them
    (``NAME=VALUE`` pairs if all are), or a list with commas.
    """
    yield text
    if text == "none":
        yield None
    for number in (int, float):
        try:
            yield number(text)
        except ValueError:
            pass
    import tomllib  # noqa: PLC0415  # few values get this far

    try:
        yield tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        pass
    try:
        words = shlex.split(text)
    except ValueError:
        return
    if all("=" in word for word in words):
        yield dict(word.split("=", 1) for word in words)
    yield words
    if "," in text:
        yield text.split(",")


def wrong_value(name: str, expected: str, value: object) -> OptionError:
    """Make the error for a value that an option does not take.

    Args:
        name: the option.
        expected: what follows "must be".
        value: shown if it is short, and not if it may be secret.
    """
    shown = brief(value)
    if len(shown) > 80 or name in ("env", "run_args"):
        shown = f"a {type(value).__name__}"
    return OptionError(f"{name} must be {expected}, not {shown}.")


# Sizes


def parse_size(text: str) -> int | None:
    """Read a number of bytes such as ``"512m"``, ``"20GB"`` or ``"20GiB"``.

    ``KB``, ``MB``, ``GB`` and ``TB`` count in 1000s. ``KiB``, ``MiB``, ``GiB`` and ``TiB`` count in
    1024s, and so do the short ``k``, ``m``, ``g`` and ``t``, as docker and podman read them. ``b``
    is one byte. Capitals make no difference.

    Returns:
        The bytes, or ``None`` if the text is no size. A number needs a unit.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    number, prefix, unit = match.groups()
    base = 1000 if unit and unit.lower() == "b" else 1024
    power = "kmgt".index(prefix.lower()) + 1 if prefix else 0
    size: int = int(number) * base**power
    return size


def as_bytes(value: object) -> object:
    """Convert a size in text to bytes."""
    size = parse_size(value) if isinstance(value, str) else None
    return value if size is None else size


# Other conversions


def as_tuple(value: object) -> object:
    """Convert a list, or another iterable, to a tuple.

    Strings and mappings stay: nobody means their letters or keys.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return value
    return tuple(value)


class Environment(Mapping[str, str]):
    """Environment variables whose values do not show in ``repr()``, and so in no log or traceback.

    Args:
        variables: the values by their names. They are copied.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)

    def __getitem__(self, name: str) -> str:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: …" for name in self._variables) + "}"


def as_environment(value: object) -> object:
    """Copy a mapping, which its owner may change later, and hide its values from ``repr()``."""
    return Environment(value) if isinstance(value, Mapping) else value


def as_placement(value: object) -> object:
    """Convert a mapping to a placement.

    Raises:
        OptionError: it has an entry that no placement has, or one of a wrong type.
    """
    if not isinstance(value, Mapping):
        return value
    fields: dict[str, object] = {}
    for name, part in value.items():
        expected = _PLACEMENT.get(str(name))
        if expected is None:
            known = ", ".join(_PLACEMENT)
            raise OptionError(f"placement has no {brief(name)}.", remedy=f"There are: {known}.")
        words, accepts = expected
        if not accepts(part):
            raise OptionError(f"{name} in placement must be {words}, not {brief(part)}.")
        fields[str(name)] = tuple(part) if isinstance(part, list) else part
    return Placement(**fields)  # type: ignore[arg-type]  # they are checked


def _is_list_of(kind: type) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, (list, tuple)) and all(isinstance(part, kind) for part in value)
    )


_NAME = ("a name", lambda value: isinstance(value, str) and value != "")

#: Maps the entries of a placement to what they must be, and to a check.
_PLACEMENT: dict[str, tuple[str, Callable[[object], bool]]] = {
    "node_selector": (
        "a mapping of strings to strings",
        lambda value: (
            isinstance(value, Mapping)
            and all(isinstance(part, str) for pair in value.items() for part in pair)
        ),
    ),
    "tolerations": ("a list of mappings", _is_list_of(Mapping)),
    "runtime_class": _NAME,
    "service_account": _NAME,
    "pull_secrets": ("a list of names", _is_list_of(str)),
    "priority_class": _NAME,
    "deadline": (
        "a number of seconds, at least 60",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 60,
    ),
}


def shown_option(name: str, value: object) -> str:
    """Return the ``repr()`` of an option's value, without what may be secret.

    The values of variables are hidden, in ``env`` as in ``run_args``, and credentials in URLs.
    """
    if name == "env" and isinstance(value, Mapping):
        return repr(Environment(value))
    if name == "run_args" and isinstance(value, tuple):
        value = tuple(without_env(value))
    return without_credentials(repr(value))


def path_text(value: object) -> object:
    """Convert a path to text."""
    return fspath(value) if isinstance(value, PathLike) else value


def with_group(user: object) -> object:
    """Convert ``"UID"`` to ``"UID:UID"``."""
    return f"{user}:{user}" if isinstance(user, str) and user.isdigit() else user


def gpu_request(value: object) -> object:
    """Convert ``"all"``, a number or a list to a :class:`~runtimes.GpuRequest`."""
    if value == "all":
        return GpuRequest()
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return GpuRequest(count=value)
    if isinstance(value, (list, tuple)) and value:
        ids = [str(item) if type(item) is int and item >= 0 else item for item in value]
        if all(isinstance(item, str) and _GPU.fullmatch(item) for item in ids):
            return GpuRequest(ids=tuple(ids))
    return value


# Checks


def is_user(value: object) -> bool:
    """Whether it is ``"UID:GID"`` or ``None``."""
    if value is None:
        return True
    match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", value) if isinstance(value, str) else None
    # The highest number means "no change" to the kernel.
    return match is not None and max(int(match[1]), int(match[2])) < 2**32 - 1


def is_text(value: object) -> bool:
    """Whether it is text that a program can be given as an argument."""
    return isinstance(value, str) and bool(value) and "\0" not in value and _is_utf8(value)


def is_text_or_none(value: object) -> bool:
    """Whether it is such text or ``None``."""
    return value is None or is_text(value)


def is_texts(value: object) -> bool:
    """Whether it is a tuple of such texts."""
    return isinstance(value, tuple) and all(map(is_text, value))


def is_path_or_none(value: object) -> bool:
    """Whether it may be the path of a file, or is ``None``."""
    return is_text_or_none(value) and (
        value is None or (len(str(value)) <= _LONGEST_PATH and "\0" not in str(value))
    )


def is_path_or_lines(value: object) -> bool:
    """Whether it may be the path of a file, is a text of several lines, or is ``None``."""
    return is_path_or_none(value) or (is_text(value) and "\n" in str(value))


def is_environment(value: object) -> bool:
    """Whether it maps names of variables to values that a program can be given in them."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(text, str)
        and name
        and "=" not in name
        and "\0" not in name + text
        and _is_utf8(name + text)
        for name, text in value.items()
    )


def is_memory(value: object) -> bool:
    """Whether it is enough memory, in bytes, or ``"auto"`` or ``None``."""
    return value == AUTO or is_count(value, _LEAST_MEMORY)


def is_cpus(value: object) -> bool:
    """Whether it is as much of a processor as engines can limit, or ``None``."""
    return value is None or (is_seconds(value) and value >= 0.01)


def is_pids(value: object) -> bool:
    """Whether it is enough processes, or ``"auto"`` or ``None``."""
    return value == AUTO or is_count(value, _LEAST_PIDS)


def is_disk(value: object) -> bool:
    """Whether it is enough disk space, in bytes, or ``None``."""
    return is_count(value, _LEAST_DISK)


def is_workspace_size(value: object) -> bool:
    """Whether it is enough disk space, in bytes, or ``"auto"`` or ``None``."""
    return value == AUTO or is_disk(value)


def is_count(value: object, least: int = 1) -> bool:
    """Whether it is a whole number, not below ``least``, or ``None``."""
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
    )


def is_pool(value: object) -> bool:
    """Whether it is a number of containers, not below 1, or ``None``."""
    return is_count(value) and (value is None or int(str(value)) <= 1000)


def is_seconds(value: object) -> TypeGuard[float]:
    """Whether it is a number above 0 that can be waited for, in seconds."""
    # The upper bound is what locks and sockets of this platform can count.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 < value < min(threading.TIMEOUT_MAX, 1e9)
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


# Mounts


def as_mounts(value: object) -> object:
    """Convert a list, or another iterable, to mounts; see :func:`user_mounts`."""
    values = as_tuple(value)
    return user_mounts(values) if isinstance(values, tuple) else value


def user_mounts(values: Iterable[object]) -> tuple[Mount, ...]:
    """Convert what a user wrote to mounts.

    Args:
        values: each a :class:`~runtimes.Mount`, or a string: ``"source:target"`` for reading,
            ``"source:target:rw"`` for writing too. A relative source counts from the working
            directory and begins with a dot; a bare name would be a volume to the engines.

    Returns:
        The mounts with their sources resolved: no symlink is left that could lead elsewhere by the
        time the container starts.

    Raises:
        OptionError: a mount has another form; a source does not exist; a target would hide what
            the sandbox needs, or another mount.
    """
    mounts = tuple(_mount(value) for value in values)
    targets: set[str] = set()
    for mount in mounts:
        if mount.target in targets:
            raise OptionError(f"mounts must have different targets; two have {mount.target}.")
        targets.add(mount.target)
    return mounts


def _mount(value: object) -> Mount:
    shared = True
    if isinstance(value, Mount):
        source, target, read_only = value.source, value.target, value.read_only
        shared = value.shared
    elif isinstance(value, str):
        source, target, read_only = _split(value)
    else:
        raise OptionError(f"mounts must be {_MOUNT_FORM} each, not a {type(value).__name__}.")
    try:
        resolved = source.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of symlinks
        reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
        raise OptionError(
            f"mounts must have sources that exist; {source} cannot be found: {reason}."
        ) from None
    _check_target(target)
    try:
        return Mount(source=resolved, target=target, read_only=read_only, shared=shared)
    except MountError as error:
        raise OptionError(f"mounts cannot be had: {error.what}", remedy=error.remedy) from None


def _split(text: str) -> tuple[Path, str, bool]:
    """Split ``"source:target:rw"`` into the source, the target and whether it is read-only."""
    source, _, rest = text.partition(":")
    target, colon, access = rest.partition(":")
    if not source or not target or (colon and access not in ("ro", "rw")):
        raise OptionError(f"mounts must be {_MOUNT_FORM} each, not {brief(text[:80])}.")
    if not source.startswith(("/", "./", "../", "~")) and source not in (".", ".."):
        raise OptionError(
            f"mounts must have paths as sources, not {brief(source[:80])}.",
            remedy=f'Write "./{source[:80]}" for one in the working directory.',
        )
    try:
        return Path(source).expanduser(), target, access != "rw"
    except RuntimeError as error:  # there is no such user
        raise OptionError(f"mounts must have sources that exist: {error}.") from None


def _check_target(target: str) -> None:
    clean = posixpath.normpath(target)  # it leaves two leading slashes as they are
    if clean != target or not re.match("/[^/]", target) or not target.isprintable():
        raise OptionError(
            "mounts must have absolute targets below /, without . and .. in them, "
            f"not {brief(target)}."
        )
    workspace = wire.WORKSPACE
    if f"{target}/".startswith(f"{workspace}/") or workspace.startswith(f"{target}/"):
        raise OptionError(
            f"mounts must leave {workspace} alone, which the sandbox needs; {target} does not.",
            remedy="Choose another target, such as /data.",
        )
