"""The exceptions of this project.

All of them derive from :class:`ContainersError`, also those of the engines, in
``runtimes.errors``. So ``except ContainersError`` catches them all::

    ContainersError
    ├── …                        errors of the engine, see runtimes.errors
    ├── OptionError              an argument is unknown, of a wrong type, or contradictory
    │   └── ConfigError          an option in the configuration file or a variable is wrong
    ├── ContextError             a context cannot be sent to the container
    ├── CompletionError          an RLM found no answer
    ├── ImageArchiveError        a file is not an image archive, or is damaged
    ├── SessionError             a session, or the directory of all sessions, cannot be used
    │   ├── SessionNotFoundError   there is no such session
    │   ├── SessionInUseError      another process uses the session
    │   ├── SessionStateError      the saved variables of the session cannot be restored
    │   ├── SnapshotNotFoundError  the session has no such snapshot
    │   └── ArchiveError           a file is not an exported session, or is damaged
    └── SandboxError
        ├── SandboxStartError    the container runs, but the guest in it does not
        │   └── GuestPythonError the image has no Python, or its Python is too old
        ├── SetupCodeError       the setup code raised an exception
        ├── SandboxBusyError     another call, or branches, have the sandbox now
        ├── BranchError          the interpreter cannot be branched, or a branch has ended
        ├── SandboxClosedError   the sandbox was closed, or was never started
        │   └── SandboxForkedError   it is of the process that this one was forked from
        ├── SandboxLostError     the container or its engine is gone
        └── WorkspaceError       a file in the workspace, or all of it, cannot be used
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from runtimes.errors import (
    ContainersError,
    ContainerStartError,
    EngineCommandError,
    EngineNotFoundError,
    EngineTimeoutError,
    EngineUnavailableError,
    ImageBuildError,
    ImageNotFoundError,
    MountError,
    UnknownRuntimeError,
    UnsupportedByEngineError,
)

__all__ = [
    "ArchiveError",
    "BranchError",
    "CompletionError",
    "ConfigError",
    "ContainerStartError",
    "ContainersError",
    "ContextError",
    "EngineCommandError",
    "EngineNotFoundError",
    "EngineTimeoutError",
    "EngineUnavailableError",
    "GuestPythonError",
    "ImageArchiveError",
    "ImageBuildError",
    "ImageNotFoundError",
    "MountError",
    "OptionError",
    "SandboxBusyError",
    "SandboxClosedError",
    "SandboxError",
    "SandboxForkedError",
    "SandboxLostError",
    "SandboxStartError",
    "SessionError",
    "SessionInUseError",
    "SessionNotFoundError",
    "SessionStateError",
    "SetupCodeError",
    "SnapshotNotFoundError",
    "UnknownRuntimeError",
    "UnsupportedByEngineError",
    "WorkspaceError",
]


class OptionError(ContainersError, TypeError, ValueError):
    """An argument is unknown, has a wrong type or value, or contradicts another."""


class ConfigError(OptionError):
    """An option in the configuration file or an environment variable is unknown or wrong."""


class ImageArchiveError(ContainersError):
    """A file is not an image archive, or is damaged."""


class ContextError(ContainersError, TypeError):
    """A context cannot be encoded for the container. Nothing has changed in the container."""


class CompletionError(ContainersError):
    """A model failed, or an RLM reached a limit before it had an answer.

    Attributes:
        partial_answer: the last message of the model, or ``None`` if there was none.
    """

    def __init__(
        self,
        what: str,
        *,
        remedy: str = "",
        container: str | None = None,
        partial_answer: str | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy, container=container)
        self.partial_answer = partial_answer


class SandboxError(ContainersError):
    """The base of the errors of a sandbox that has been made."""


class SandboxStartError(SandboxError):
    """The engine started the container, but the guest in it did not start."""


class GuestPythonError(SandboxStartError):
    """The image has no Python interpreter, or one that is too old."""


class SetupCodeError(SandboxError):
    """The setup code, or the code of a tool, failed.

    Attributes:
        stderr: what it wrote to standard error, with its traceback.
    """

    def __init__(self, what: str, *, stderr: str, container: str | None = None) -> None:
        super().__init__(
            what,
            remedy=f"Correct the code. It printed:\n{stderr}",
            container=container,
        )
        self.stderr = stderr


class SandboxBusyError(SandboxError):
    """A call was made inside of another call of the sandbox, or while it has open branches."""


class BranchError(SandboxError):
    """The interpreter cannot be branched as it is now, or a branch has ended.

    The sandbox itself goes on.
    """


class SandboxClosedError(SandboxError):
    """The sandbox was closed or has not been started."""


class SandboxForkedError(SandboxClosedError):
    """The sandbox is of the process that this one was forked from."""


class SandboxLostError(SandboxError):
    """The container ended, was removed by someone else, or its engine is gone."""


class WorkspaceError(SandboxError):
    """Something in the directory behind ``/workspace`` cannot be read, written or removed.

    Attributes:
        errno: which error of the operating system it is, such as ``errno.ENOENT`` for a file that
            is missing; ``None`` if it is none of these.
    """

    def __init__(
        self,
        what: str,
        *,
        remedy: str = "",
        container: str | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(what, remedy=remedy, container=container)
        self.errno = errno


class SessionError(ContainersError):
    """A session, or the directory of all sessions, cannot be used."""


class SessionNotFoundError(SessionError):
    """There is no session with that name."""


class SessionInUseError(SessionError):
    """Another sandbox uses the session.

    Attributes:
        pid: the process of that sandbox, or ``None`` if it is not known.
    """

    def __init__(
        self, what: str, *, remedy: str = "", container: str | None = None, pid: int | None = None
    ) -> None:
        super().__init__(what, remedy=remedy, container=container)
        self.pid = pid


class SessionStateError(SessionError):
    """The saved variables of a session or snapshot cannot be restored. They are still there."""


class SnapshotNotFoundError(SessionError):
    """There is no such snapshot, or the id fits more than one."""


class ArchiveError(SessionError):
    """A file is not an exported session, is damaged, or cannot be trusted."""


def message_of(error: BaseException) -> str:
    """Return the message of any exception, whatever its own methods do."""
    try:
        return f"{error}"
    except BaseException:  # a __str__ may raise anything
        return "its message cannot be shown"


def describe(error: BaseException) -> str:
    """Return the type and the message of any exception, whatever its own methods do."""
    return f"{type.__dict__['__name__'].__get__(type(error))}: {message_of(error)}"


_REMEDIES = {
    errno.ENOSPC: "Make room on the disk.",
    errno.EDQUOT: "Make room on the disk, or raise the quota.",
    errno.EFBIG: "Raise the limit on the size of files: `ulimit -f`.",
    errno.EMFILE: "Close files or sandboxes, or raise the limit on open files: `ulimit -n`.",
    errno.ENFILE: "Too many files are open on this machine: close some.",
    errno.ENOLCK: "The file system has no locks. Set XDG_STATE_HOME and XDG_CACHE_HOME to "
    "directories on one that has.",
}
_UNWRITABLE = (
    "Make the directory writable, or set XDG_STATE_HOME and XDG_CACHE_HOME to directories that are."
)


def remedy_for(error: OSError, otherwise: str = _UNWRITABLE) -> str:
    """Return what to do about an error of the operating system.

    Args:
        error: the error.
        otherwise: the remedy for an error that may mean anything.
    """
    return _REMEDIES.get(error.errno or 0, otherwise)


@contextlib.contextmanager
def host_errors(
    kind: type[ContainersError], what: str, *, container: str | None = None
) -> Iterator[None]:
    """Raise an error of this project in place of one of the operating system.

    Args:
        kind: the error's class.
        what: what could not be done, as a sentence without its full stop.
        container: as for :class:`ContainersError`.
    """
    try:
        yield
    except OSError as error:
        raise kind(
            f"{what}: {error.strerror or error}.", remedy=remedy_for(error), container=container
        ) from error


def format_size(size: int) -> str:
    """Return a number of bytes as text for people, such as ``"1.5 GiB"``."""
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"
