"""A sandbox for Deep Agents: ``create_deep_agent(…, backend=ContainerSandbox(box))``.

The agent's tools for files and its shell then work in the sandbox's container. Written against
deepagents 0.7, ``deepagents.backends.sandbox``. Nothing else imports deepagents.
"""

from __future__ import annotations

import errno
import posixpath

from deepagents.backends.protocol import (
    FILE_NOT_FOUND,
    INVALID_PATH,
    IS_DIRECTORY,
    PERMISSION_DENIED,
    ExecuteResponse,
    FileDownloadResponse,
    FileUploadResponse,
    GrepResult,
)
from deepagents.backends.sandbox import BaseSandbox

from rlm_containers.errors import OptionError
from rlm_containers.integrations.container_files import ContainerFiles
from rlm_containers.interpreter import CommandResult
from rlm_containers.sandbox import Sandbox

#: What Deep Agents calls the errors that a model can understand.
_NAMES = {
    errno.EACCES: PERMISSION_DENIED,
    errno.EISDIR: IS_DIRECTORY,
    errno.ELOOP: INVALID_PATH,
    errno.ENAMETOOLONG: INVALID_PATH,
    errno.ENOENT: FILE_NOT_FOUND,
    errno.ENOTDIR: INVALID_PATH,
    errno.EPERM: PERMISSION_DENIED,
    errno.EROFS: PERMISSION_DENIED,
}

# Deep Agents takes the failure of a grep that does not know -Z, such as busybox's, for no match.
_FIND_GREP = "command -v rg || printf x | grep -Z x"
_NO_GREP = (
    "This container has neither GNU grep nor ripgrep. Use Sandbox(system_packages=['grep']), or "
    "search with Python."
)


class ContainerSandbox(BaseSandbox):
    """A sandbox as that of Deep Agents.

    The agent works with all files of the container and starts in ``/workspace``. Whoever made the
    sandbox starts and closes it.

    Methods raise SandboxClosedError and SandboxLostError, as :meth:`Sandbox.command` does.

    Args:
        box: the sandbox, started.
        timeout: seconds that a command may take if its call does not say; ``None`` for no limit.
    """

    def __init__(self, box: Sandbox, *, timeout: float | None = None) -> None:
        self.box = box
        self._timeout = timeout
        self._files = ContainerFiles(box)
        self._without_grep: bool | None = None  # not known yet

    @property
    def id(self) -> str:
        """The name of the container."""
        return self.box.name

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        """Run a command with the container's shell.

        Args:
            command: the command.
            timeout: seconds until it is killed with all that it has started; 0 for no limit.

        Returns:
            Both of its output streams as one, at most ``max_output`` bytes, and its exit code. That
            is 124 after ``timeout``, and 128 plus the number of a signal that ended it.
        """
        return _response(self.box.command(_merged(command), timeout=self._limit(timeout)))

    async def aexecute(
        self,
        command: str,
        *,
        timeout: int | None = None,
    ) -> ExecuteResponse:
        """As :meth:`execute`. If it is cancelled, the command is killed."""
        return _response(await self.box.acommand(_merged(command), timeout=self._limit(timeout)))

    def _limit(self, timeout: int | None) -> float | None:
        return self._timeout if timeout is None else timeout or None

    def grep(
        self,
        pattern: str,
        path: str | None = None,
        glob: str | None = None,
        *,
        max_count: int | None = None,
    ) -> GrepResult:
        """Search files for a text. It is an error if the image's grep cannot do it."""
        if self._without_grep is None:
            self._without_grep = self.box.command(_FIND_GREP).status != "ok"
        if self._without_grep:
            return GrepResult(error=_NO_GREP)
        return super().grep(pattern, path, glob, max_count=max_count)

    async def agrep(
        self,
        pattern: str,
        path: str | None = None,
        glob: str | None = None,
        *,
        max_count: int | None = None,
    ) -> GrepResult:
        """As :meth:`grep`."""
        if self._without_grep is None:
            self._without_grep = (await self.box.acommand(_FIND_GREP)).status != "ok"
        if self._without_grep:
            return GrepResult(error=_NO_GREP)
        return await super().agrep(pattern, path, glob, max_count=max_count)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files. The directories on their paths are made."""
        return [FileUploadResponse(path, self._upload(path, data)) for path, data in files]

    def _upload(self, path: str, data: bytes) -> str | None:
        try:
            self._files.write(_checked(path), data)
        except (OptionError, OSError) as error:
            return _name_of(error)
        return None

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read files, of at most 256 MiB each."""
        return [self._download(path) for path in paths]

    def _download(self, path: str) -> FileDownloadResponse:
        try:
            return FileDownloadResponse(path, self._files.read(_checked(path)))
        except (OptionError, OSError) as error:
            return FileDownloadResponse(path, error=_name_of(error))


def _checked(path: str) -> str:
    if not posixpath.isabs(path):
        raise OptionError("A path must be absolute.")
    return path


def _name_of(error: OptionError | OSError) -> str:
    """Return what Deep Agents calls an error, or its text."""
    if isinstance(error, OptionError):
        return INVALID_PATH
    return _NAMES.get(error.errno or 0, str(error))


def _merged(command: str) -> list[str]:
    """Return the arguments of a command that writes its errors to its output, in their order."""
    return ["sh", "-c", 'exec sh -c "$1" 2>&1', "sh", command]


def _response(result: CommandResult) -> ExecuteResponse:
    output = result.stdout.text
    if result.notices:
        output += "\n" * (not output.endswith("\n")) + " ".join(result.notices)
    return ExecuteResponse(
        output=output, exit_code=result.exit_code, truncated=bool(result.stdout.cut)
    )
