"""What a command is to be: its arguments, checked, and the message that starts it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from rlm_containers.errors import OptionError
from rlm_containers.guest import wire
from rlm_containers.interpreter.setup import WorkerSetup
from runtimes.text import brief

#: Bytes of the JSON that starts a command: beside it is the number.
_LONGEST = wire.MAX_FRAME - 4


@dataclass(frozen=True, kw_only=True)
class CommandRequest:
    """What to run.

    Attributes:
        arguments: the program and its arguments.
        cwd: where it starts, relative to the workspace; ``None`` for the workspace.
        env: environment variables, besides the sandbox's.
        input: its standard input; ``None`` for none.
        timeout: seconds that it may take; ``None`` for no limit.
    """

    arguments: tuple[str, ...]
    cwd: str | None = None
    env: Mapping[str, str]
    input: bytes | None = None
    timeout: float | None = None

    @classmethod
    def checked(
        cls,
        command: object,
        *,
        cwd: object,
        env: Mapping[str, str] | None,
        input: object,  # noqa: A002 - as subprocess.run() has it
        timeout: object,
    ) -> Self:
        """Check the arguments of :meth:`Sandbox.command`.

        Raises:
            OptionError: one of them is wrong.
        """
        if isinstance(command, str):
            arguments: tuple[str, ...] = ("sh", "-c", _text("command", command))
        elif isinstance(command, Sequence) and not isinstance(command, bytes | bytearray):
            arguments = tuple(_text("an argument", argument) for argument in command)
        else:
            raise OptionError(
                f"command must be a string or a sequence of strings, not {type(command).__name__}."
            )
        if not arguments or not arguments[0]:
            raise OptionError("command names no program.")
        variables = {}
        for name, value in dict(env or {}).items():
            key = _text("the name of a variable", name)
            if not key or "=" in key:
                raise OptionError(f"{brief(key)} is not the name of a variable.")
            variables[key] = _text(f"the variable {brief(key)}", value)
        if isinstance(input, str):
            input = input.encode("utf-8", "surrogateescape")  # noqa: A001
        elif input is not None and not isinstance(input, bytes | bytearray | memoryview):
            raise OptionError(f"input must be bytes or a string, not {type(input).__name__}.")
        if timeout is not None and (
            isinstance(timeout, bool)
            or not isinstance(timeout, int | float)
            or not 0 < timeout < math.inf
        ):
            raise OptionError(f"timeout must be a number of seconds above 0, not {timeout!r}.")
        return cls(
            arguments=arguments,
            cwd=None if cwd is None else _text("cwd", cwd),
            env=variables,
            input=None if input is None else bytes(input),
            timeout=timeout,
        )

    def message(self, setup: WorkerSetup, container: str) -> bytes:
        """Return what tells the guest to start the command.

        Args:
            setup: what every worker is given.
            container: the container's name, for the error.

        Raises:
            OptionError: it is too large.
        """
        content = {
            "argv": self.arguments,
            "cwd": self.cwd,
            "env": {**setup.env, **self.env},
            "file_limit": setup.file_limit,
            "core_files": setup.core_files,
            "input": self.input is not None,
        }
        text = json.dumps(content).encode("ascii")
        if len(text) > _LONGEST:
            raise OptionError(
                f"The command is too large to be sent: {len(text):,} bytes are more than the "
                f"{_LONGEST:,} that fit into one message.",
                remedy="Put long data into a file, or give it as input.",
                container=container,
            )
        return text


def _text(what: str, value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise OptionError(f"{what} must be a string, not {type(value).__name__}.")
    if "\0" in value:
        raise OptionError(f"{what} has a null character in it.")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise OptionError(f"{what} cannot be encoded: {error.reason}.") from None
    return value
