"""Every option of a sandbox, with its default and its check."""

from __future__ import annotations

import dataclasses
import difflib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypedDict

from rlm_containers.errors import OptionError
from runtimes import Runtime

__all__ = ["DEFAULT_IMAGE", "OptionArguments", "SandboxOptions", "unknown_option"]

DEFAULT_IMAGE = "python:3.11-slim"


class OptionArguments(TypedDict, total=False):
    """The keyword arguments that a sandbox takes besides its image, for type checkers."""

    runtime: str | Runtime | None
    network: Literal["bridge", "none"]
    env: Mapping[str, str]
    memory: int | None
    pids: int | None
    run_args: Iterable[str]
    start_timeout: float
    cell_timeout: float | None
    lm_timeout: float
    max_lm_calls: int | None
    max_session_lm_calls: int | None
    max_output: int


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """What a sandbox is to be.

    Attributes:
        image: the image reference. Needs Python 3.9 or later in it, nothing else.
        runtime: the engine, as for :func:`runtimes.get_runtime`; ``None`` finds one.
        network: ``"bridge"``: the engine's default network. ``"none"``: no network;
            ``llm_query`` works all the same, over the container's pipe.
        env: environment variables for the cells. They travel over the pipe and may be secret;
            what the interpreter reads as it starts (``PYTHONHASHSEED``) comes too late that way
            and belongs into the image.
        memory: the most memory the container may use, in bytes; ``None`` for no limit.
        pids: the most processes and threads it may have; ``None`` for no limit.
        run_args: further arguments for the engine's ``run``. Nothing is checked in them.
        start_timeout: seconds until a container and its interpreter must be ready, pulling its
            image not counted; and the next interpreter, when one has died.
        cell_timeout: seconds that a cell may run; ``None`` for no limit. Time in which it waits for
            the host, for the answer of a language model above all, is not counted. At the limit the
            cell is interrupted, and killed if it goes on for five seconds. The checkpoint after a
            cell may take as long when another cell waits for it.
        lm_timeout: seconds to wait for one answer of a language model, to one prompt or one batch.
            What comes later is an error string in the cell. No request, a recursive one neither,
            stops a cell's clock for longer.
        max_lm_calls: the most prompts that one cell may ask, those of batches and recursive ones
            counted one by one; ``None`` for no limit. Past it the cell gets error strings.
        max_session_lm_calls: the same for all cells of the sandbox together.
        max_output: characters that are kept of each of a cell's two output streams.
    """

    image: str = DEFAULT_IMAGE
    runtime: str | Runtime | None = None
    network: Literal["bridge", "none"] = "bridge"
    env: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    pids: int | None = None
    run_args: tuple[str, ...] = ()
    start_timeout: float = 60.0
    cell_timeout: float | None = None
    lm_timeout: float = 600.0
    max_lm_calls: int | None = None
    max_session_lm_calls: int | None = None
    max_output: int = 1_000_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_args", _words(self.run_args))
        if isinstance(self.env, Mapping):
            object.__setattr__(self, "env", dict(self.env))  # the caller's may change
        for name, expected, good in (
            ("image", "the name of an image", _is_text(self.image)),
            (
                "runtime",
                'a name such as "podman", a path or a Runtime',
                self.runtime is None or isinstance(self.runtime, (str, Runtime)),
            ),
            ("network", '"bridge" or "none"', self.network in ("bridge", "none")),
            ("env", "a mapping of strings to strings", _is_environment(self.env)),
            ("memory", "a number of bytes or None", _is_count(self.memory)),
            ("pids", "a number or None", _is_count(self.pids)),
            ("run_args", "a list of strings", all(map(_is_text, self.run_args))),
            ("start_timeout", "a number of seconds", _is_positive(self.start_timeout)),
            (
                "cell_timeout",
                "a number of seconds or None",
                self.cell_timeout is None or _is_positive(self.cell_timeout),
            ),
            ("lm_timeout", "a number of seconds", _is_positive(self.lm_timeout)),
            ("max_lm_calls", "a number or None", _is_count(self.max_lm_calls)),
            ("max_session_lm_calls", "a number or None", _is_count(self.max_session_lm_calls)),
            (
                "max_output",
                "a number of characters, at least 100",
                _is_count(self.max_output) and (self.max_output or 0) >= 100,
            ),
        ):
            if not good:
                raise _wrong(name, expected, getattr(self, name))
        if self.image.startswith("-"):
            # It would be read as an option of `run`.
            raise _wrong("image", "the name of an image", self.image)

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], also: Iterable[str] = ()) -> Self:
        """Options from keyword arguments.

        Args:
            arguments: as a user wrote them.
            also: names that the caller itself accepts, to be suggested for a misspelt one.

        Raises:
            OptionError: an argument is unknown (the message names the nearest that is not), or
                has a wrong type or value.
        """
        known = {option.name for option in dataclasses.fields(cls)}
        for name in arguments:
            if name not in known:
                raise unknown_option(name, {*known, *also})
        return cls(**arguments)


def unknown_option(name: str, known: Iterable[str]) -> OptionError:
    """The error for an argument that nothing takes."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    remedy = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}."
    return OptionError(f"There is no argument {name!r}.", remedy=remedy)


def _wrong(name: str, expected: str, value: object) -> OptionError:
    shown = repr(value)
    if len(shown) > 80 or name == "env":  # the environment may hold secrets
        shown = f"a {type(value).__name__}"
    return OptionError(f"{name} must be {expected}, not {shown}.")


def _words(value: object) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _wrong("run_args", "a list of strings", value)
    return tuple(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value and _is_utf8(value)


def _is_environment(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(text, str)
        and name
        and "=" not in name
        and "\0" not in name + text
        and _is_utf8(name + text)
        for name, text in value.items()
    )


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _is_positive(value: object) -> bool:
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
