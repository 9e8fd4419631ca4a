"""The errors of container engines.

All derive from :class:`ContainersError`. So do the errors of ``rlm_containers``, so that one
``except`` catches those of the whole project::

    ContainersError
    ├── UnknownRuntimeError      there is no runtime of this name
    ├── MountError               no engine can mount this path
    ├── EngineNotFoundError      the engine's program is not installed
    ├── EngineUnavailableError   the program is there, but no engine answers
    ├── EngineCommandError       the engine refused or failed a command
    │   ├── ImageNotFoundError   the image is not in the store and cannot be pulled
    │   ├── ImageBuildError      the image could not be built
    │   ├── ContainerStartError  the container could not be started
    │   └── EngineTimeoutError   the engine did not answer in time
    └── UnsupportedByEngineError this engine, or this version of it, cannot do this
"""

from __future__ import annotations

from typing import Any

from runtimes.text import clean

__all__ = [
    "ContainerStartError",
    "ContainersError",
    "EngineCommandError",
    "EngineNotFoundError",
    "EngineTimeoutError",
    "EngineUnavailableError",
    "ImageBuildError",
    "ImageNotFoundError",
    "MountError",
    "UnknownRuntimeError",
    "UnsupportedByEngineError",
]


#: Characters of the parts of a message. A remedy may end with a traceback.
_WHAT_LIMIT = 4000
_REMEDY_LIMIT = 16_000
_NAME_LIMIT = 200


class ContainersError(Exception):
    """The base of every error of this project.

    Args:
        what: what happened, as a full sentence.
        remedy: what the reader can do next, as a full sentence. May be empty.
        container: the name of the container concerned, where there is one.

    The three are attributes, too; ``str()`` joins them. What a container or an engine has put into
    them is made harmless and bounded, see :func:`runtimes.text.clean`.
    """

    def __init__(self, what: str, *, remedy: str = "", container: str | None = None) -> None:
        super().__init__()
        self.what = clean(what, _WHAT_LIMIT, lines=True)
        self.remedy = clean(remedy, _REMEDY_LIMIT, lines=True)
        self.container: str | None = None
        self.name_container(container)

    def name_container(self, container: str | None) -> None:
        """Set the container concerned, unless the error names one already."""
        if self.container is None and container:
            self.container = clean(container, _NAME_LIMIT)
        where = f" [container {self.container}]" if self.container else ""
        self.args = (f"{self.what}{where}" + (f" {self.remedy}" if self.remedy else ""),)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pools of processes pickle exceptions. By default unpickling would call the constructor
        # with the joined text.
        return (_restore, (type(self), self.args, self.__dict__))


def _restore(
    kind: type[ContainersError], args: tuple[Any, ...], state: dict[str, Any]
) -> ContainersError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UnknownRuntimeError(ContainersError, ValueError):
    """The value given as ``runtime`` names no runtime."""


class MountError(ContainersError, ValueError):
    """A path cannot be mounted into a container."""


class EngineNotFoundError(ContainersError):
    """The engine's command-line program is not installed, or not on ``PATH``."""


class EngineUnavailableError(ContainersError):
    """The command-line program is there, but no engine answers behind it."""


class EngineCommandError(ContainersError):
    """The engine's command line ended with an error.

    Attributes:
        exit_code: the client's exit status, or ``None`` if it did not end by itself.
        stderr: what it wrote to standard error, unchanged: it may hold control characters.
    """

    def __init__(
        self,
        what: str,
        *,
        remedy: str = "",
        container: str | None = None,
        exit_code: int | None = None,
        stderr: str = "",
    ) -> None:
        super().__init__(what, remedy=remedy, container=container)
        self.exit_code = exit_code
        self.stderr = stderr


class ImageNotFoundError(EngineCommandError):
    """The image is not in the engine's store and could not be pulled."""


class ImageBuildError(EngineCommandError):
    """The engine could not build the image. ``stderr`` holds the end of the build's log."""


class ContainerStartError(EngineCommandError):
    """The engine could not start the container.

    Attributes:
        transient: whether a retry may succeed, since the engine was only busy.
    """

    transient = False


class EngineTimeoutError(EngineCommandError):
    """The engine's command line did not end in time; the local client was killed."""


class UnsupportedByEngineError(ContainersError):
    """This engine, or this version of it, cannot do what was asked."""
