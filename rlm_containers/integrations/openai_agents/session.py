"""The SDK's ``BaseSandboxSession`` in one of this project's containers."""

from __future__ import annotations

import io
import posixpath
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from agents.sandbox.errors import (
    ExecTimeoutError,
    ExecTransportError,
    WorkspaceArchiveReadError,
    WorkspaceArchiveWriteError,
    WorkspaceReadNotFoundError,
    WorkspaceStartError,
)
from agents.sandbox.session.base_sandbox_session import BaseSandboxSession
from agents.sandbox.session.runtime_helpers import (
    RESOLVE_WORKSPACE_PATH_HELPER,
    RuntimeHelperScript,
)
from agents.sandbox.session.workspace_payloads import coerce_write_payload
from agents.sandbox.types import ExecResult, User
from agents.sandbox.util.tar_utils import UnsafeTarMemberError

from rlm_containers.errors import ContainersError, SandboxClosedError, SandboxError
from rlm_containers.guest import wire
from rlm_containers.integrations.container_files import ContainerFiles
from rlm_containers.integrations.openai_agents.archive import pack, unpack
from rlm_containers.integrations.openai_agents.state import (
    ContainerSandboxSessionState,
    unsupported,
)
from rlm_containers.sandbox import Sandbox

#: Bytes of a command's output that the SDK gets, unless the options say it. What a model sees of
#: that, the SDK cuts itself.
_MAX_OUTPUT = 10 * 1024**2


class ContainerSandboxSession(BaseSandboxSession):
    """A session whose commands and files are in a container.

    :class:`ContainerSandboxClient` makes them. The files are kept on this host as the session
    ``state.name``, for the next container.

    Args:
        state: what the SDK keeps of it.
    """

    state: ContainerSandboxSessionState

    def __init__(self, state: ContainerSandboxSessionState) -> None:
        self.state = state
        self._running_box: Sandbox | None = None

    @property
    def box(self) -> Sandbox:
        """The sandbox, which runs.

        Raises:
            SandboxClosedError: it does not.
        """
        if self._running_box is None:
            raise SandboxClosedError(
                "The session does not run.", remedy="Start it: `async with session:`."
            )
        return self._running_box

    # Start and end

    async def _ensure_backend_started(self) -> None:
        if await self.running():
            return
        environment = await self.state.manifest.environment.resolve()
        options: dict[str, Any] = {"max_output": _MAX_OUTPUT, **self.state.options}
        if environment:
            options["env"] = environment
        box = Sandbox(**options, session=self.state.name, scaffold=False)
        self._running_box = await box.astart()

    async def _prepare_backend_workspace(self) -> None:
        await self.box.files.amkdir(self.state.manifest.root)

    async def _after_start_failed(self) -> None:
        await self._shutdown_backend()

    def _wrap_start_error(self, error: Exception) -> Exception:
        if not isinstance(error, ContainersError):
            return error
        return WorkspaceStartError(
            path=self._workspace_root_path(), cause=error, message=str(error)
        )

    async def running(self) -> bool:
        """Return whether the container runs."""
        if self._running_box is None:
            return False
        try:
            await self._running_box.acommand(["true"])
        except SandboxError:
            return False
        return True

    async def _shutdown_backend(self) -> None:
        box, self._running_box = self._running_box, None
        if box is not None:
            await box.aclose()

    # Commands

    def _prepare_exec_command(
        self,
        *command: str | Path,
        shell: bool | list[str],
        user: str | User | None,
    ) -> list[str]:
        if user is not None:
            raise _other_user(user)
        return super()._prepare_exec_command(*command, shell=shell, user=None)

    async def _exec_internal(
        self, *command: str | Path, timeout: float | None = None
    ) -> ExecResult:
        arguments = [str(argument) for argument in command]
        try:
            result = await self.box.acommand(
                arguments, cwd=self.state.manifest.root, timeout=timeout
            )
        except ContainersError as error:
            raise ExecTransportError(
                command=command, cause=error, message=str(error), retryable=False
            ) from error
        if result.status == "timeout":
            raise ExecTimeoutError(command=command, timeout_s=timeout)
        return ExecResult(
            stdout=bytes(result.stdout),
            stderr=bytes(result.stderr) + "".join(f"{n}\n" for n in result.notices).encode(),
            exit_code=result.exit_code,
        )

    # Files

    def _runtime_helpers(self) -> tuple[RuntimeHelperScript, ...]:
        return (RESOLVE_WORKSPACE_PATH_HELPER,)

    def _current_runtime_helper_cache_key(self) -> object | None:
        return self._running_box and self._running_box.name

    async def _validate_path_access(self, path: Path | str, *, for_write: bool = False) -> Path:
        return await self._validate_remote_path_access(path, for_write=for_write)

    async def read(self, path: Path, *, user: str | User | None = None) -> io.IOBase:
        """Return the contents of a file.

        Raises:
            WorkspaceReadNotFoundError: there is none.
            WorkspaceArchiveReadError: it cannot be read.
            ConfigurationError: another user is to read it.
        """
        if user is not None:
            raise _other_user(user)
        found = await self._validate_path_access(path)
        try:
            return io.BytesIO(await ContainerFiles(self.box).aread(found.as_posix()))
        except FileNotFoundError as error:
            raise WorkspaceReadNotFoundError(path=path, cause=error) from error
        except (OSError, ContainersError) as error:
            raise WorkspaceArchiveReadError(path=path, cause=error, retryable=False) from error

    async def write(self, path: Path, data: io.IOBase, *, user: str | User | None = None) -> None:
        """Make or replace a file, and the directories on its path.

        Raises:
            WorkspaceArchiveWriteError: it cannot be written.
            ConfigurationError: another user is to write it.
        """
        if user is not None:
            raise _other_user(user)
        content = coerce_write_payload(path=path, data=data).stream.read()
        target = await self._validate_path_access(path, for_write=True)
        try:
            await ContainerFiles(self.box).awrite(target.as_posix(), content)
        except (OSError, ContainersError) as error:
            raise WorkspaceArchiveWriteError(path=path, cause=error, retryable=False) from error

    # Whole workspaces

    def _persist_workspace_skip_relpaths(self) -> set[Path]:
        return super()._persist_workspace_skip_relpaths() | {Path(name) for name in self._reserved}

    @property
    def _reserved(self) -> frozenset[str]:
        """What is in the workspace's root and belongs to the sandbox itself."""
        at_top = posixpath.normpath(self.state.manifest.root) == wire.WORKSPACE
        return wire.RESERVED if at_top else frozenset()

    async def _remove_workspace_entry_on_resume(self, path: Path) -> None:
        # rm() would refuse a link that leads out of the workspace.
        if path.parent != self._workspace_root_path() or path.name not in self._reserved:
            await self.box.files.aremove(path.as_posix())

    async def persist_workspace(self) -> io.IOBase:
        """Return the workspace as a tar archive, for a snapshot of the SDK.

        Raises:
            WorkspaceArchiveReadError: a file cannot be read, or there is no room for the archive.
        """
        root = self._workspace_root_path()
        skipped = sorted(path.as_posix() for path in self._persist_workspace_skip_relpaths())
        try:
            return await pack(self.box, PurePosixPath(root), skipped)
        except (ContainersError, UnsafeTarMemberError, tarfile.TarError, OSError) as error:
            raise WorkspaceArchiveReadError(path=root, cause=error, retryable=False) from error

    async def hydrate_workspace(self, data: io.IOBase) -> None:
        """Unpack a tar archive into the workspace, of this backend or another.

        Raises:
            WorkspaceArchiveWriteError: it is no archive, leads out of itself, or does not fit.
        """
        root = self._workspace_root_path()
        content = coerce_write_payload(path=root, data=data).stream.read()
        try:
            await self.box.files.amkdir(root.as_posix())
            await unpack(self.box, PurePosixPath(root), content, self._reserved)
        except (ContainersError, UnsafeTarMemberError, tarfile.TarError, OSError) as error:
            raise WorkspaceArchiveWriteError(path=root, cause=error, retryable=False) from error


def _other_user(user: str | User) -> Exception:
    name = user.name if isinstance(user, User) else user
    return unsupported(
        f"The containers have one user, and {name!r} cannot be another. Leave it out, or set the "
        "user of all with ContainerSandboxClientOptions(user=…).",
        "exec",
    )
