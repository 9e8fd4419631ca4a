"""The values that options take: how each is read from text, converted and checked.

Converters return a value of a wrong type as it is; the check that follows refuses it.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import threading
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TypeGuard

from rlm_containers.errors import OptionError
from rlm_containers.guest import wire
from runtimes import GpuRequest, Mount
from runtimes.errors import MountError

#: The value of a limit that this library chooses.
AUTO = "auto"

#: An interpreter needs this much, and a container has no fewer processes.
_LEAST_MEMORY = 32 * 1024**2
_LEAST_PIDS = 16
_LEAST_DISK = 1024**2

_SIZE = re.compile(r"([0-9]{1,18})(?:([kmgt])(i?b)?|b)", re.IGNORECASE)

#: An index, a UUID of a GPU or of a part of one (``MIG-…``), or an index of a part: ``0:1``.
_GPU = re.compile(r"[0-9A-Za-z][0-9A-Za-z:-]*")

#: Paths in the container that no mount may hide or lie in.
_RESERVED = (wire.WORKSPACE, wire.BUNDLE)

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
    shown = repr(value)
    if len(shown) > 80 or name == "env":
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


def as_dict(value: object) -> object:
    """Copy a mapping, which its owner may change later."""
    return dict(value) if isinstance(value, Mapping) else value


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


def is_count(value: object, least: int = 1) -> bool:
    """Whether it is a whole number, not below ``least``, or ``None``."""
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
    )


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
        raise OptionError(f"mounts must be {_MOUNT_FORM} each, not {text[:80]!r}.")
    if not source.startswith(("/", "./", "../", "~")) and source not in (".", ".."):
        raise OptionError(
            f"mounts must have paths as sources, not {source[:80]!r}.",
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
            f"mounts must have absolute targets below /, without . and .. in them, not {target!r}."
        )
    for path in _RESERVED:
        if target == path or target.startswith(path + "/") or path.startswith(target + "/"):
            raise OptionError(
                f"mounts must leave {path} alone, which the sandbox needs; {target} does not.",
                remedy="Choose another target, such as /data.",
            )
