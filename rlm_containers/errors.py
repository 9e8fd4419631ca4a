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
        ├── SandboxClosedError   the sandbox was closed, or was never started
        ├── SandboxLostError     the container or its engine is gone
        └── WorkspaceError       the workspace cannot be written or removed
"""

from __future__ import annotations

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
    "SandboxClosedError",
    "SandboxError",
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


class SandboxClosedError(SandboxError):
    """The sandbox was closed or has not been started."""


class SandboxLostError(SandboxError):
    """The container ended, was removed by someone else, or its engine is gone."""


class WorkspaceError(SandboxError):
    """The directory behind ``/workspace`` cannot be written to or removed."""


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


def format_size(size: int) -> str:
    """Return a number of bytes as text for people, such as ``"1.5 GiB"``."""
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"
