"""What can go wrong with a sandbox.

Everything raised here derives from :class:`ContainersError`, the base that ``runtimes.errors``
shares, so one ``except ContainersError`` catches the whole project::

    ContainersError
    ├── …                        the engine: see runtimes.errors
    ├── OptionError              an argument that is unknown, of a wrong type, or contradictory
    │   └── ConfigError          the same, in the configuration file or in a variable
    ├── ContextError             a context that cannot be sent to the container
    ├── CompletionError          an RLM that came to no answer
    ├── ImageArchiveError        a file that is not an image, or damaged
    ├── SessionError             a session that is kept, or its directory
    │   ├── SessionNotFoundError   there is none of that name
    │   ├── SessionInUseError      another process has it
    │   ├── SessionStateError      its saved variables cannot be gone on from
    │   ├── SnapshotNotFoundError  it has no such snapshot
    │   └── ArchiveError           a file is no exported session, or a damaged one
    └── SandboxError
        ├── SandboxStartError    the container is up, the guest in it is not
        │   └── GuestPythonError the image has no Python, or too old a one
        ├── SetupCodeError       the setup code raised an exception
        ├── SandboxClosedError   it was closed, or never started
        ├── SandboxLostError     the container or its engine went away
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
    "format_size",
]


class OptionError(ContainersError, TypeError, ValueError):
    """An argument is unknown, has a wrong type or value, or contradicts another."""


class ConfigError(OptionError):
    """An option in the configuration file, or in an environment variable, is unknown or wrong."""


class ImageArchiveError(ContainersError):
    """A file is not an image archive, or damaged."""


class ContextError(ContainersError, TypeError):
    """A context cannot be encoded for the container. Nothing was changed there."""


class CompletionError(ContainersError):
    """A model failed, or an RLM reached a limit before it had an answer.

    Attributes:
        partial_answer: the last message of the model, if there was one.
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
    """The base of what can go wrong with a sandbox that has been made."""


class SandboxStartError(SandboxError):
    """The engine started the container, but the guest in it did not come up."""


class GuestPythonError(SandboxStartError):
    """The image has no Python interpreter, or one that is too old."""


class SetupCodeError(SandboxError):
    """The setup code, or the code of a tool, failed. ``stderr`` holds its traceback."""

    def __init__(self, what: str, *, stderr: str, container: str | None = None) -> None:
        super().__init__(
            what,
            remedy=f"Correct it. It printed:\n{stderr}",
            container=container,
        )
        self.stderr = stderr


class SandboxClosedError(SandboxError):
    """The sandbox was closed or has not been started."""


class SandboxLostError(SandboxError):
    """The container ended by itself, was removed by someone else, or its engine went away."""


class WorkspaceError(SandboxError):
    """The directory behind ``/workspace`` cannot be written to or removed."""


class SessionError(ContainersError):
    """A session that is kept cannot be used, or its directory cannot."""


class SessionNotFoundError(SessionError):
    """There is no session of that name."""


class SessionInUseError(SessionError):
    """Another sandbox has the session. ``pid`` is its process, if that is known."""

    def __init__(
        self, what: str, *, remedy: str = "", container: str | None = None, pid: int | None = None
    ) -> None:
        super().__init__(what, remedy=remedy, container=container)
        self.pid = pid


class SessionStateError(SessionError):
    """What a session or snapshot had saved cannot be gone on from. It is still there."""


class SnapshotNotFoundError(SessionError):
    """There is no such snapshot, or more than one that the id may mean."""


class ArchiveError(SessionError):
    """A file is not an exported session, or is damaged, or may not be trusted."""


def format_size(size: int) -> str:
    """Bytes as people say it, for instance ``"1.5 GiB"``."""
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"
