"""A workspace for pydantic-ai: ``agent.run(…, workspace=ContainerWorkspace(box))``.

Tools then find the sandbox's container as ``ctx.workspace``, with its commands and files. Written
against pydantic-ai 2.68, ``pydantic_ai.workspaces.protocol``. Nothing else imports pydantic-ai.
"""

from __future__ import annotations

import contextlib
import errno
import posixpath
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

from pydantic_ai.workspaces import (
    CommandResult,
    FileEntry,
    SupportsCommands,
    SupportsFilesystem,
    SupportsRealpath,
    WorkspaceBackend,
    WorkspaceCommand,
    WorkspaceOutputLimitError,
    WorkspaceRef,
    WorkspaceTimeoutError,
    WorkspaceUnavailableError,
)

from rlm_containers.errors import SandboxClosedError, SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.integrations.container_files import ContainerFile, ContainerFiles
from rlm_containers.sandbox import Sandbox

#: The provider in the refs of these workspaces.
PROVIDER = "rlm-containers"

#: The sandboxes that workspaces were made of, by their names.
_sandboxes: weakref.WeakValueDictionary[str, Sandbox] = weakref.WeakValueDictionary()


class ContainerWorkspace(WorkspaceBackend, SupportsCommands, SupportsFilesystem, SupportsRealpath):
    """A sandbox as pydantic-ai's workspace.

    Its first use starts the sandbox, unless it runs. Whoever made the sandbox closes it. Paths may
    lead anywhere in the container; links are followed, and files are used with the rights of the
    container's user.

    Methods raise WorkspaceUnavailableError once the sandbox is closed or its container is gone,
    and OSError where the container's user cannot do what they are told.

    Args:
        box: the sandbox.
    """

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self._files = ContainerFiles(box)

    @classmethod
    def attach(cls, ref: WorkspaceRef) -> Self:
        """Return another workspace with the sandbox that a ref names.

        Raises:
            WorkspaceUnavailableError: this process has no workspace with that ref. A sandbox
                cannot be reached from another process.
        """
        box = _sandboxes.get(ref.id) if ref.provider == PROVIDER else None
        if box is None:
            raise WorkspaceUnavailableError(f"This process has no sandbox {ref.id!r}.")
        return cls(box)

    @property
    def ref(self) -> WorkspaceRef | None:
        """Names the sandbox, once it has been started."""
        if self.box.python_version is None:
            return None
        _sandboxes[self.box.name] = self.box  # here: one of a pool has its name once it has started
        return WorkspaceRef(provider=PROVIDER, id=self.box.name)

    async def working_dir(self) -> str:
        """Return the directory in which commands start: ``/workspace``."""
        await self._started()
        with _errors():
            await self.box.files.astat(".")  # raises an error if it was closed
        return wire.WORKSPACE

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        """Run a command. It is killed when the caller is cancelled, with all that it has started.

        Args:
            command: a program and its arguments, or with ``shell`` a string for ``sh -c``.
            shell: whether it is such a string.
            env: environment variables, besides the sandbox's own.
            timeout: seconds until it is killed.

        Raises:
            TypeError: ``command`` and ``shell`` do not fit together.
            ValueError: another argument is wrong.
            WorkspaceTimeoutError: it was killed at its ``timeout``.
            WorkspaceOutputLimitError: it wrote more than ``max_output`` of the sandbox.
        """
        if isinstance(command, str) is not shell:
            raise TypeError("A string needs shell=True, and a sequence shell=False.")
        await self._started()
        with _errors():
            result = await self.box.acommand(command, env=env, timeout=timeout)
        stdout, stderr = result.stdout.text, result.stderr.text
        said = " ".join(result.notices)
        if result.status == "timeout":
            raise WorkspaceTimeoutError(said, stdout=stdout, stderr=stderr)
        if result.stdout.cut or result.stderr.cut:
            limit = self.box.options.max_output
            raise WorkspaceOutputLimitError(
                f"The command wrote more than the {limit:,} bytes of a stream that are kept "
                "(max_output). Write the output to a file, and read a part of it.",
                limit=limit,
                stdout=stdout,
                stderr=stderr,
            )
        stderr += f"{said}\n" if said else ""
        return CommandResult(exit_code=result.exit_code, stdout=stdout, stderr=stderr)

    async def read_bytes(self, path: str) -> bytes:
        """Return the contents of a file: at most 256 MiB, else an OSError with ``EFBIG``."""
        await self._started()
        with _errors():
            return await self._files.aread(path)

    async def write_bytes(self, path: str, data: bytes) -> None:
        """Make a file or replace its contents. The directories on its path are made."""
        await self._started()
        with _errors():
            await self._files.awrite(path, data)

    async def stat(self, path: str) -> FileEntry:
        """Return what there is at a path."""
        await self._started()
        with _errors():
            return _entry(await self._files.astat(path))

    async def list_dir(self, path: str) -> Sequence[FileEntry]:
        """List a directory, sorted by name."""
        await self._started()
        with _errors():
            return [_entry(found) for found in await self._files.alist(path)]

    async def make_dir(self, path: str) -> None:
        """Make a directory and those above it. Do nothing if it is there."""
        await self._started()
        with _errors():
            await self._files.amkdir(path)

    async def remove(self, path: str) -> None:
        """Remove a file, a link, or a directory with all that is in it.

        Raises:
            ValueError: it is the working directory or one above it.
        """
        await self._started()
        with _errors():
            try:
                await self._files.aremove(path)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise ValueError(f"{path} is the workspace, or above it.") from error

    async def exists(self, path: str) -> bool:
        """Whether there is anything at a path."""
        try:
            await self.stat(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True

    async def realpath(self, path: str) -> str:
        """Return a path without links. What does not exist stays as it is written."""
        await self._started()
        with _errors():
            return await self._files.arealpath(path)

    async def _started(self) -> None:
        """Start the sandbox. One that runs is not asked: it would wait for the cell's end."""
        if self.box.python_version is None:
            with _errors():
                await self.box.astart()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Raise pydantic-ai's error where the sandbox is gone."""
    try:
        yield
    except (SandboxClosedError, SandboxLostError) as error:
        raise WorkspaceUnavailableError(str(error)) from error


def _entry(found: ContainerFile) -> FileEntry:
    return FileEntry(
        name=posixpath.basename(posixpath.normpath(found.path)),
        path=found.path,
        is_dir=found.is_directory,
        size=None if found.is_directory else found.size,
    )
