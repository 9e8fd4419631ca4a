"""The values that options may have, each by itself, and what is said of one that is wrong."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any, TypeGuard

from rlm_containers.errors import OptionError
from rlm_containers.options.sizes import AUTO
from runtimes import GpuRequest

#: Less does not hold an interpreter; nor are there so few processes in a container.
_LEAST_MEMORY = 32 * 1024**2
_LEAST_PIDS = 16
_LEAST_DISK = 1024**2

#: An index, a UUID of a GPU or of a part of one (``MIG-…``), or an index of a part: ``0:1``.
_GPU = re.compile(r"[0-9A-Za-z][0-9A-Za-z:-]*")


def wrong_value(name: str, expected: str, value: object) -> OptionError:
    """The error for a value that an option cannot have."""
    shown = repr(value)
    if len(shown) > 80 or name == "env":  # the environment may hold secrets
        shown = f"a {type(value).__name__}"
    return OptionError(f"{name} must be {expected}, not {shown}.")


# As options keep them


def sequence(name: str, expected: str, value: object) -> tuple[Any, ...]:
    """What is in a list, or in anything else that can be gone through.

    Raises:
        OptionError: it cannot, or is a string or a mapping, whose letters or keys nobody means.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise wrong_value(name, expected, value)
    return tuple(value)


def path_text(value: object) -> object:
    """A path as text."""
    return fspath(value) if isinstance(value, PathLike) else value


def with_group(user: object) -> object:
    """``"UID:UID"`` for ``"UID"``."""
    return f"{user}:{user}" if isinstance(user, str) and user.isdigit() else user


def gpu_request(value: object) -> object:
    """What a value that is right asks for; any other as it is."""
    if value == "all":
        return GpuRequest()
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return GpuRequest(count=value)
    if isinstance(value, (list, tuple)) and value:
        ids = [str(item) if type(item) is int and item >= 0 else item for item in value]
        if all(isinstance(item, str) and _GPU.fullmatch(item) for item in ids):
            return GpuRequest(ids=tuple(ids))
    return value


# Whether they are right


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
    """The same, or ``None``."""
    return value is None or is_text(value)


def is_environment(value: object) -> bool:
    """Whether it maps names of variables to what a program can be given in them."""
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
    """Whether it is so much of a processor that engines can share it out, or ``None``."""
    return value is None or (is_positive(value) and value >= 0.01)


def is_pids(value: object) -> bool:
    """Whether it is enough processes, or ``"auto"`` or ``None``."""
    return value == AUTO or is_count(value, _LEAST_PIDS)


def is_disk(value: object) -> bool:
    """Whether it is enough room, in bytes, or ``None``."""
    return is_count(value, _LEAST_DISK)


def is_count(value: object, least: int = 1) -> bool:
    """Whether it is a whole number, not less than one that is named, or ``None``."""
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63
    )


def is_positive(value: object) -> TypeGuard[float]:
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
