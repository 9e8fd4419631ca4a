"""Directories and files of the host that a user wants to see in a sandbox."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from rlm_containers.errors import OptionError
from rlm_containers.guest import wire
from runtimes import Mount
from runtimes.errors import MountError

#: What of a container is not to be hidden by a mount, nor have one in it.
_OURS = (wire.WORKSPACE, wire.BUNDLE)

_FORM = '"source:target", "source:target:rw" or a Mount'


def user_mounts(values: Iterable[object]) -> tuple[Mount, ...]:
    """The mounts for what a user wrote.

    Args:
        values: each a :class:`~runtimes.spec.Mount`, or a string ``"source:target"`` for reading
            and ``"source:target:rw"`` for writing too. A relative source counts from the working
            directory and begins with a dot: a bare name would be a volume's to the engines.

    Returns:
        The same with their sources resolved: no symlink is left in them that could lead elsewhere
        by the time that the container starts.

    Raises:
        OptionError: a value has another form; a source does not exist; a target would hide what
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
    if isinstance(value, Mount):
        source, target, read_only, shared = (
            value.source,
            value.target,
            value.read_only,
            value.shared,
        )
    elif isinstance(value, str):
        source, target, read_only = _split(value)
        shared = True
    else:
        raise OptionError(f"mounts must be {_FORM} each, not a {type(value).__name__}.")
    try:
        resolved = source.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of symlinks
        raise OptionError(
            f"mounts must have sources that exist; {source} cannot be found: {_reason(error)}."
        ) from None
    _check_target(target)
    try:
        return Mount(source=resolved, target=target, read_only=read_only, shared=shared)
    except MountError as error:
        raise OptionError(f"mounts cannot be had: {error.what}", remedy=error.remedy) from None


def _split(text: str) -> tuple[Path, str, bool]:
    source, _, rest = text.partition(":")
    target, colon, access = rest.partition(":")
    if not source or not target or (colon and access not in ("ro", "rw")):
        raise OptionError(f"mounts must be {_FORM} each, not {text[:80]!r}.")
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
    clean = posixpath.normpath(target)  # which leaves two leading slashes as they are
    if clean != target or not re.match("/[^/]", target) or not target.isprintable():
        raise OptionError(
            f"mounts must have absolute targets below /, without . and .. in them, not {target!r}."
        )
    for ours in _OURS:
        if target == ours or target.startswith(ours + "/") or ours.startswith(target + "/"):
            raise OptionError(
                f"mounts must leave {ours} alone, which the sandbox needs; {target} does not.",
                remedy="Choose another target, such as /data.",
            )


def _reason(error: Exception) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else str(error)
