"""Calling an engine's command line: the only place that quotes, logs, waits and maps errors."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sh

from runtimes.errors import (
    ContainersError,
    EngineCommandError,
    EngineNotFoundError,
    EngineTimeoutError,
)
from runtimes.process import ContainerProcess, end_command, read_lines

logger = logging.getLogger("runtimes")

#: Seconds that a query or a removal may take. Engines stall for many seconds under load (one lock
#: guards podman's store), and hang for ever when their daemon is stuck.
DEFAULT_TIMEOUT = 60.0


@dataclass(frozen=True)
class CommandResult:
    """How a command ended.

    Attributes:
        exit_code: its exit status, negative for a signal.
        stdout: its output as text; bytes that are not UTF-8 are replaced.
        stderr: its standard error, likewise.
    """

    exit_code: int
    stdout: str
    stderr: str

    def objects(self) -> list[dict[str, Any]]:
        """Return the objects in the JSON on standard output: one, an array, or one a line.

        What is no object, such as ``null``, is left out.

        Raises:
            ContainersError: it is not JSON.
        """
        for parts in ([self.stdout], self.stdout.splitlines()):
            try:
                found = [json.loads(part) for part in parts if part.strip()]
            except ValueError:
                continue
            entries = [
                e for value in found for e in (value if isinstance(value, list) else [value])
            ]
            return [entry for entry in entries if isinstance(entry, dict)]
        raise ContainersError(
            f"The engine printed something that is not JSON: {self.stdout[:80]!r}",
            remedy="Is the program really a Docker-compatible command line?",
        )


class EngineCommand:
    """A binary and its fixed leading arguments, for instance ``("podman", "--remote")``.

    No secret may be among the arguments of a call: ``sh`` logs whole command lines, puts them
    into its exceptions, and every local user can read them in the process list.

    Args:
        argv: the binary, a name to look up on ``PATH`` or a path, and leading arguments.

    Raises:
        EngineNotFoundError: there is no such binary.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = tuple(argv)
        try:
            self._command = sh.Command(self.argv[0])
        except sh.CommandNotFound:
            raise EngineNotFoundError(
                f"There is no program {self.argv[0]!r} on PATH.",
                remedy="Install Docker or Podman, or name the engine's binary with runtime=…",
            ) from None

    def __str__(self) -> str:
        return shlex.join(self.argv)

    def run(
        self,
        *args: str,
        timeout: float = DEFAULT_TIMEOUT,
        check: bool = True,
    ) -> CommandResult:
        """Run to the end and collect the output.

        Args:
            args: arguments after the fixed ones.
            timeout: seconds until the local client is killed.
            check: raise when the exit status is not 0.

        Raises:
            EngineCommandError: the exit status was not 0 and ``check`` is set.
            EngineTimeoutError: it did not end in time.
        """
        logger.debug("run %s %s", self, shlex.join(args))
        overdue = threading.Event()
        try:
            with open(os.devnull, "rb") as nothing:
                # Without sh's own _timeout, which polls ten times a second.
                done = self._start(args, _in=nothing)
            timer = threading.Timer(timeout, _give_up, (done, overdue))
            timer.daemon = True
            timer.start()
            try:
                done.wait()
            finally:
                timer.cancel()
                timer.join()  # so that no thread outlives the call
            result = CommandResult(done.exit_code, _text(done.stdout), _text(done.stderr))
        except sh.ErrorReturnCode as error:  # ended by a signal: not in _ok_code
            result = CommandResult(int(error.exit_code), _text(error.stdout), _text(error.stderr))
        except sh.ForkException as error:
            raise self._not_runnable(error) from None
        if overdue.is_set():
            raise self._timed_out(args, timeout)
        if check and result.exit_code != 0:
            raise EngineCommandError(
                f"`{self} {_summary(args)}` failed with status {result.exit_code}: "
                f"{last_lines(result.stderr, 1) or 'it said nothing'}",
                exit_code=result.exit_code,
                stderr=result.stderr,
            )
        return result

    def follow(
        self,
        *args: str,
        on_line: Callable[[str], None],
        timeout: float,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> int:
        """Run to the end, and pass on each line of output as it comes.

        Args:
            args: arguments after the fixed ones.
            on_line: called in this thread with each line of standard output and standard error,
                without colours and control characters. An exception of its ends the command.
            timeout: seconds until the local client is interrupted.
            environment: variables on top of this process's own.
            directory: the working directory; ``None`` for this process's own.

        Returns:
            The exit status, negative for a signal.

        Raises:
            EngineTimeoutError: it did not end in time.
        """
        logger.debug("follow %s %s", self, shlex.join(args))
        reading, writing = os.pipe()
        try:
            with open(os.devnull, "rb") as nothing, os.fdopen(writing, "wb", 0) as child_out:
                running = self._start(
                    args,
                    _in=nothing,
                    _out=child_out,
                    _err=child_out,
                    _env={**os.environ, **(environment or {})},
                    _cwd=str(directory) if directory else None,
                )
        except sh.ForkException as error:
            os.close(reading)
            raise self._not_runnable(error) from None
        waiter = threading.Thread(target=running.process.wait, name="follow", daemon=True)
        waiter.start()
        try:
            for line in read_lines(reading, waiter, time.monotonic() + timeout):
                on_line(line)
        except TimeoutError:
            end_command(running, waiter)
            raise self._timed_out(args, timeout) from None
        except BaseException:
            end_command(running, waiter)
            raise
        finally:
            os.close(reading)
        return int(running.process.wait())

    def hold(
        self,
        name: str,
        *args: str,
        directory: Path | None = None,
        keep_open: Collection[int] = (),
    ) -> ContainerProcess:
        """Start a container's client and return at once, holding its three standard streams.

        Args:
            name: the container's name, for the returned object.
            args: arguments after the fixed ones.
            directory: the working directory; ``None`` for this process's own.
            keep_open: further descriptors that the process inherits.
        """
        logger.debug("hold %s %s", self, shlex.join(args))
        if shutil.which(self.argv[0]) is None:  # sh would fail after its fork, and leak pipes
            raise self._not_runnable("it is gone")
        for descriptor in keep_open:
            os.set_inheritable(descriptor, True)  # sh closes it in every other child
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        ours_err, theirs_err = os.pipe()
        try:
            # sh hands real descriptors to the child and copies nothing itself. Its own queues and
            # callbacks go through a polling thread, at 0.1-160 MB/s.
            with (
                os.fdopen(theirs_in, "rb", buffering=0) as child_in,
                os.fdopen(theirs_out, "wb", buffering=0) as child_out,
                os.fdopen(theirs_err, "wb", buffering=0) as child_err,
            ):
                running = self._start(
                    args,
                    _in=child_in,
                    _out=child_out,
                    _err=child_err,
                    _cwd=str(directory) if directory else None,
                    _pass_fds=set(keep_open),
                )
        except BaseException as error:
            for descriptor in (ours_in, ours_out, ours_err):
                os.close(descriptor)
            if isinstance(error, sh.ForkException):
                raise self._not_runnable(error) from None
            raise
        finally:
            for descriptor in keep_open:
                os.set_inheritable(descriptor, False)
        return ContainerProcess(name, running, ours_in, ours_out, ours_err)

    def _start(self, args: Sequence[str], **options: Any) -> sh.RunningCommand:
        """Start the program in the background, with further options of sh's."""
        running: sh.RunningCommand = self._command(
            *self.argv[1:],
            *args,
            _return_cmd=True,
            _bg=True,
            _bg_exc=False,
            # An engine's error is a result here, not an exception of sh's.
            _ok_code=list(range(256)),
            # Else sh gives the child a terminal, to which engines print progress bars and colours.
            _tty_out=False,
            # Ctrl-C in the host's terminal is for the host to handle.
            _new_session=True,
            **options,
        )
        return running

    def _timed_out(self, args: Sequence[str], timeout: float) -> EngineTimeoutError:
        return EngineTimeoutError(
            f"`{self} {_summary(args)}` did not end within {timeout:g} s.",
            remedy=f"See whether the engine is stuck: `{self} info` should answer.",
        )

    def _not_runnable(self, error: object) -> EngineNotFoundError:
        return EngineNotFoundError(
            f"The program {self.argv[0]!r} could not be run: {last_lines(str(error), 1)}",
            remedy="Check that it is an executable for this machine.",
        )


def _give_up(running: sh.RunningCommand, overdue: threading.Event) -> None:
    overdue.set()
    # The client's whole group, so that no child of it keeps the output open.
    with contextlib.suppress(ProcessLookupError):
        running.kill_group()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _summary(args: Sequence[str]) -> str:
    """The first words of a command line, to recognise it by; the rest may be very long."""
    return shlex.join(args[:2])


def last_lines(text: str, lines: int = 3) -> str:
    """Return the last lines of an engine's output, where it names the cause of a failure."""
    kept = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and "'docker run --help'" not in line
    ]
    return " / ".join(kept[-lines:])
