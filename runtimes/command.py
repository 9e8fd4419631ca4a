"""Calling an engine's command line: the only place that quotes, logs, waits and maps errors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import sh

from runtimes.errors import (
    ContainersError,
    EngineCommandError,
    EngineNotFoundError,
    EngineTimeoutError,
)
from runtimes.forks import InFlight
from runtimes.process import ClientProcess, Excerpt, end_command, read_lines, read_pieces
from runtimes.text import brief, clean, get_logger, without_env
from runtimes.timelimit import TimeLimit

logger = get_logger("runtimes")

#: Seconds that a query or a removal may take. Engines stall for many seconds under load (one lock
#: guards podman's store), and hang for ever when their daemon is stuck.
DEFAULT_TIMEOUT = 60.0

#: The most characters of an argument in a message.
_WORD = 200

#: Seconds for a killed client to be gone. One that waits for a broken disk never is.
_KILL_TIMEOUT = 10.0

#: Bytes of standard output. A list of ten thousand containers has half as many.
_MAX_STDOUT = 32 * 1024 * 1024

#: Bytes to keep of the beginning and of the end of standard error.
_STDERR_KEPT = (16 * 1024, 48 * 1024)

#: Descriptors that starting a program needs for a moment. sh leaks those that it has made when it
#: cannot make another.
_DESCRIPTORS = 24


@dataclass(frozen=True)
class CommandResult:
    """How a command ended.

    Attributes:
        exit_code: its exit status, negative for a signal.
        stdout: its output as text; bytes that are not UTF-8 are replaced.
        stderr: its standard error, likewise; of more than 64 KiB only the beginning and the end.
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
            except (ValueError, RecursionError):
                continue
            entries = [
                e for value in found for e in (value if isinstance(value, list) else [value])
            ]
            return [entry for entry in entries if isinstance(entry, dict)]
        raise ContainersError(
            f"The engine printed something that is not JSON: {brief(self.stdout[:80])}",
            remedy="Is the program really a Docker-compatible command line?",
        )


@contextlib.contextmanager
def reading(command: str) -> Iterator[None]:
    """Raise an error of this package for an answer of an engine that makes no sense.

    Args:
        command: the command that was answered.

    Raises:
        EngineCommandError: something in the answer is missing, or of another type or value than
            engines give it.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ContainersError):
            raise
        raise EngineCommandError(
            f"The engine's answer to `{command}` makes no sense: "
            f"{type(error).__name__}: {clean(error, 200)}.",
            remedy="Is the program really a Docker-compatible command line?",
        ) from None


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
                f"There is no program {brief(self.argv[0])} on PATH.",
                remedy="Install Docker or Podman, or name the engine's binary with runtime=…"
                if self.argv[0] != "kubectl"
                else "Install kubectl (https://kubernetes.io/docs/tasks/tools/), or name its "
                "binary with runtime=…",
            ) from None

    def __str__(self) -> str:
        return _line(self.argv)

    def run(
        self,
        *args: str,
        timeout: float | None = None,
        check: bool = True,
        given: bytes = b"",
    ) -> CommandResult:
        """Run to the end and collect the output.

        Args:
            args: arguments after the fixed ones.
            timeout: seconds until the local client is killed; ``None`` for what is left of the
                operation's :class:`TimeLimit`, or 60 outside of any.
            check: raise when the exit status is not 0.
            given: what it finds on its standard input.

        Raises:
            EngineCommandError: it printed more than 32 MiB, and was killed; or the exit status was
                not 0 and ``check`` is set.
            EngineTimeoutError: it did not end in time.
        """
        self._prepare()
        limit = TimeLimit.current() if timeout is None else None
        if timeout is None:
            timeout = DEFAULT_TIMEOUT if limit is None else limit.left()
        logger.debug("run %s %s", self, _line(args))
        if timeout <= 0:
            raise self._timed_out(args, timeout, limit)
        deadline = time.monotonic() + timeout
        stdout, stderr = bytearray(), Excerpt(*_STDERR_KEPT)
        with contextlib.ExitStack() as pipes:
            (out, child_out), (err, child_err) = _pipe(pipes), _pipe(pipes)
            with (
                child_out,
                child_err,
                tempfile.TemporaryFile() if given else open(os.devnull, "rb") as file,
            ):
                if given:
                    file.write(given)
                    file.seek(0)
                running = self._start(args, _in=file, _out=child_out, _err=child_err)
            waiter = _waiter(running)
            try:
                for descriptor, piece in read_pieces((out, err), waiter, deadline):
                    if descriptor == err:
                        stderr.add(piece)
                        continue
                    stdout += piece
                    if len(stdout) > _MAX_STDOUT:
                        raise self._flooded(args, stderr.text())
            except BaseException as error:
                _kill(running, waiter)
                if isinstance(error, TimeoutError):
                    raise self._timed_out(args, timeout, limit) from None
                raise
            waiter.join()
        result = CommandResult(
            self._status(running, args), stdout.decode("utf-8", "replace"), stderr.text()
        )
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
        self._prepare()
        logger.debug("follow %s %s", self, _line(args))
        with contextlib.ExitStack() as pipes:
            reading, child_out = _pipe(pipes)
            with child_out, open(os.devnull, "rb") as nothing:
                running = self._start(
                    args,
                    _in=nothing,
                    _out=child_out,
                    _err=child_out,
                    _env={**os.environ, **(environment or {})},
                    _cwd=str(directory) if directory else None,
                )
            waiter = _waiter(running)
            try:
                for line in read_lines(reading, waiter, time.monotonic() + timeout):
                    on_line(line)
            except BaseException as error:
                end_command(running, waiter)
                if isinstance(error, TimeoutError):
                    raise self._timed_out(args, timeout) from None
                raise
        return self._status(running, args)

    def hold(
        self,
        name: str,
        *args: str,
        directory: Path | None = None,
        keep_open: Collection[int] = (),
    ) -> ClientProcess:
        """Start a container's client and return at once, holding its three standard streams.

        Args:
            name: the container's name, for the returned object.
            args: arguments after the fixed ones.
            directory: the working directory; ``None`` for this process's own.
            keep_open: further descriptors that the process inherits.
        """
        self._prepare()
        logger.debug("hold %s %s", self, _line(args))
        if shutil.which(self.argv[0]) is None:  # sh would fail after its fork, and leak pipes
            raise self._not_runnable("it is gone")
        with InFlight() as flight:
            return self._hold(flight, name, args, directory, keep_open)

    def _hold(
        self,
        flight: InFlight,
        name: str,
        args: Sequence[str],
        directory: Path | None,
        keep_open: Collection[int],
    ) -> ClientProcess:
        # Copies, which the program does not drop. sh closes them in every other child.
        passed = [flight.dup(descriptor) for descriptor in keep_open]
        theirs_in, ours_in = flight.pipe()
        ours_out, theirs_out = flight.pipe()
        ours_err, theirs_err = flight.pipe()
        try:
            # sh hands real descriptors to the child and copies nothing itself. Its own queues and
            # callbacks go through a polling thread, at 0.1-160 MB/s.
            with (
                os.fdopen(theirs_in, "rb", buffering=0) as child_in,
                os.fdopen(theirs_out, "wb", buffering=0) as child_out,
                os.fdopen(theirs_err, "wb", buffering=0) as child_err,
                flight.theirs(theirs_in, theirs_out, theirs_err, *passed),
            ):
                running = self._start(
                    args,
                    _in=child_in,
                    _out=child_out,
                    _err=child_err,
                    _cwd=str(directory) if directory else None,
                    _pass_fds=set(passed),
                )
        except BaseException:
            for descriptor in (ours_in, ours_out, ours_err):
                os.close(descriptor)
            raise
        finally:
            for descriptor in passed:
                os.close(descriptor)
        return ClientProcess(name, running, ours_in, ours_out, ours_err)

    def _start(self, args: Sequence[str], **options: Any) -> sh.RunningCommand:
        """Start the program in the background, with further options of sh's.

        Raises:
            EngineCommandError: this process may not start another, for want of memory or the like.
            EngineNotFoundError: the program is none that can be run.
        """
        try:
            running: sh.RunningCommand = self._command(
                *self.argv[1:],
                *args,
                _return_cmd=True,
                _log_msg=lambda ran, *more: f"{self.argv[0]} {_summary(args)}",
                _bg=True,
                _bg_exc=False,
                # An engine's error is a result here, not an exception of sh's.
                _ok_code=list(range(256)),
                # Else sh gives the child a terminal, to which engines print progress bars and
                # colours.
                _tty_out=False,
                # Ctrl-C in the host's terminal is for the host to handle.
                _new_session=True,
                **options,
            )
        except sh.ForkException as error:
            raise self._not_runnable(error) from None
        except OSError as error:
            raise self._not_started(error) from error
        return running

    def _prepare(self) -> None:
        """Make this process ready to start the program. Call this before any pipe to it is made.

        Raises:
            EngineCommandError: there are too few descriptors.
            ContainersError: the exit status would be lost.
        """
        _expect_exit_statuses()
        try:
            _open_standard_streams()
            with contextlib.ExitStack() as spare:
                for _ in range(_DESCRIPTORS):
                    spare.enter_context(open(os.devnull, "rb", buffering=0))
        except OSError as error:
            raise self._not_started(error) from error

    def _not_started(self, error: OSError) -> EngineCommandError:
        remedy = "See what uses up this machine."
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "Close files or sandboxes, or raise the limit: `ulimit -n`."
        return EngineCommandError(
            f"The program {brief(self.argv[0])} could not be started: {error.strerror}.",
            remedy=remedy,
        )

    def _status(self, running: sh.RunningCommand, args: Sequence[str]) -> int:
        """Return the exit status of a command that has ended, negative for a signal."""
        try:
            return int(running.process.wait())
        except ChildProcessError:
            raise ContainersError(
                f"The exit status of `{self} {_summary(args)}` is lost: something in this process "
                "waits for all of its child processes.",
                remedy="Let it wait for its own only: os.waitpid(pid, …) and not os.wait(), nor in "
                "a handler of SIGCHLD.",
            ) from None

    def _timed_out(
        self, args: Sequence[str], timeout: float, limit: TimeLimit | None = None
    ) -> EngineTimeoutError:
        when = f"within {timeout:g} s"
        slow = ""
        if limit is not None:
            when = f"in time: {limit.what} had {limit.seconds:g} s in all"
            slow = limit.advice()
        return EngineTimeoutError(
            f"`{self} {_summary(args)}` did not end {when}.",
            remedy=f"See whether the engine is stuck: `{self} info` should answer.{slow}",
            container=limit.container if limit else None,
        )

    def _flooded(self, args: Sequence[str], stderr: str) -> EngineCommandError:
        return EngineCommandError(
            f"`{self} {_summary(args)}` printed more than {_MAX_STDOUT >> 20} MiB, and was killed.",
            remedy="Is the program really a Docker-compatible command line? Run it by hand.",
            stderr=stderr,
        )

    def _not_runnable(self, error: object) -> EngineNotFoundError:
        return EngineNotFoundError(
            f"The program {self.argv[0]!r} could not be run: {last_lines(str(error), 1)}",
            remedy="Check that it is an executable for this machine.",
        )


def _expect_exit_statuses() -> None:
    """Let this process learn how its children end. It does not where SIGCHLD is ignored.

    Raises:
        ContainersError: it is ignored, and only the main thread can change that.
    """
    if signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN:
        return
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except ValueError:
        raise ContainersError(
            "SIGCHLD is ignored in this process, so that exit statuses of engines are lost.",
            remedy="Call signal.signal(signal.SIGCHLD, signal.SIG_DFL) in the main thread.",
        ) from None
    logger.warning("SIGCHLD was ignored, and is not any more: the exit statuses are needed")


def _open_standard_streams() -> None:
    """Open ``/dev/null`` in place of standard streams that are closed.

    Else a pipe would get the number of one, and be replaced in the child.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one


def _pipe(stack: contextlib.ExitStack) -> tuple[int, BinaryIO]:
    """Make a pipe. Return its reading end, which the stack closes, and a file for its other end.

    A child that gets a real descriptor is read by us. Otherwise sh would read all of it, without a
    bound, in threads of its own.
    """
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    return reading, stack.enter_context(os.fdopen(writing, "wb", buffering=0))


def _waiter(running: sh.RunningCommand) -> threading.Thread:
    """Start a thread that ends with the command."""

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):  # something else has waited for it
            running.process.wait()

    waiter = threading.Thread(target=wait, name="engine-command", daemon=True)
    waiter.start()
    return waiter


def _kill(running: sh.RunningCommand, waiter: threading.Thread) -> None:
    # The client's whole group, so that no child of it goes on.
    if waiter.is_alive():
        with contextlib.suppress(ProcessLookupError):
            running.kill_group()
    waiter.join(_KILL_TIMEOUT)


def _summary(args: Sequence[str]) -> str:
    """The first words of a command line, to recognise it by; the rest may be very long."""
    return _line(args[:2])


def _line(words: Sequence[str]) -> str:
    """A command line for messages: programs among its arguments are left out."""
    return shlex.join(
        "…" if "\n" in word else word if len(word) <= _WORD else word[:_WORD] + "…"
        for word in without_env(words)
    )


def last_lines(text: str, lines: int = 3) -> str:
    """Return the last lines of an engine's output, where it names the cause of a failure."""
    kept = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and "'docker run --help'" not in line
    ]
    return " / ".join(kept[-lines:])
