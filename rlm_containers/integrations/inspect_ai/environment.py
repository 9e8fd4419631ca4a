"""Inspect's ``SandboxEnvironment`` in one of this project's containers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import posixpath
import shlex
from collections.abc import Iterator
from typing import Any, Literal, overload

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxConnection,
    SandboxEnvironment,
    SandboxEnvironmentConfigType,
    SandboxEnvironmentLimits,
    sandboxenv,
)
from inspect_ai.util._sandbox.compose import COMPOSE_FILES, DOCKERFILE
from inspect_ai.util._sandbox.environment import SandboxUnavailableError

from rlm_containers.errors import ContainersError, SandboxClosedError, SandboxLostError
from rlm_containers.integrations.container_files import ContainerFiles
from rlm_containers.integrations.inspect_ai.config import ContainerConfig
from rlm_containers.integrations.inspect_ai.output import Tail
from rlm_containers.integrations.inspect_ai.users import Users
from rlm_containers.sandbox import Sandbox

#: What the guest writes for a program that the user may not execute. No exit code tells it from a
#: shell that says the same of another.
_NOT_EXECUTED = b"cannot be executed: Permission denied\n"


@sandboxenv(name="rlm-containers")
class ContainerSandboxEnvironment(SandboxEnvironment):
    """One container, which one sample of a task has for itself.

    Args:
        box: the sandbox, which runs.
        users: what it can run commands as.
        working_dir: where its commands start, and what paths are relative to.

    Attributes:
        box: the sandbox.
    """

    def __init__(self, box: Sandbox, users: Users, working_dir: str) -> None:
        super().__init__()
        self.box = box
        self._users = users
        self._working_dir = working_dir
        self._files = ContainerFiles(box, python=users.python)

    # Start and end

    @classmethod
    def config_files(cls) -> list[str]:
        """Return the files that Inspect looks for beside a task that names no configuration.

        Compose files are among them, and refused: else a task that is written for one would run in
        another environment, with a mere warning.
        """
        return [*COMPOSE_FILES, DOCKERFILE]

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> ContainerConfig:
        """Return a configuration that was read from a log.

        Raises:
            OptionError: it is not one of these.
        """
        return ContainerConfig(**config)

    @classmethod
    def default_concurrency(cls) -> int | None:
        """Return how many sandboxes run at once unless ``max_sandboxes`` says it."""
        return 2 * (os.cpu_count() or 1)

    @classmethod
    async def task_init(cls, task_name: str, config: SandboxEnvironmentConfigType | None) -> None:
        """Start one sandbox and end it: what is wrong is found before any sample runs.

        Samples that begin at the same time also find their image pulled or built.

        Raises:
            PrerequisiteError: it does not start. Inspect shows this one without a traceback.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PrerequisiteError(
                "The sandbox rlm-containers needs asyncio. Unset INSPECT_ASYNC_BACKEND."
            ) from None
        try:
            async with _sandbox(config):
                pass
        except ContainersError as error:
            raise PrerequisiteError(str(error)) from error

    @classmethod
    async def sample_init(
        cls,
        task_name: str,
        config: SandboxEnvironmentConfigType | None,
        metadata: dict[str, str],
    ) -> dict[str, SandboxEnvironment]:
        """Start the sandbox of a sample.

        Raises:
            ContainersError: as for :meth:`Sandbox.start`.
        """
        box = await _sandbox(config).astart()
        try:
            working_dir = ContainerConfig.of(config).working_dir
            return {"default": cls(box, await Users.of(box), working_dir)}
        except BaseException:
            await box.aclose()
            raise

    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: SandboxEnvironmentConfigType | None,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        """End the sandboxes of a sample."""
        for environment in environments.values():
            await environment.as_type(cls).box.aclose()

    # Commands

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,  # noqa: A002 - Inspect's name
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a command.

        A time limit kills it with all that it has started, so there is nothing to try again. No
        process of this host runs for it, so Inspect's limit on these does not concern it.

        Raises:
            SandboxUserUnsupportedError: the sandbox cannot run commands as ``user``.
            SandboxUnavailableError: the sandbox is gone.
            TimeoutError: it reached ``timeout``. ``truncated_output`` has what it wrote.
            PermissionError: the program may not be executed.
        """
        output = Tail(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE)
        if user:
            cmd = self._users.command(user, cmd)
        with _available():
            result = await self.box.acommand(
                cmd,
                input=input,
                cwd=self._absolute(cwd or ""),
                env=env,
                timeout=timeout,
                on_output=output.add,
            )
        stdout, stderr = output.text("stdout"), output.text("stderr")
        if result.status == "timeout":
            error = TimeoutError(f"The command took more than {timeout} s and was killed.")
            error.truncated_output = stdout + stderr  # type: ignore[attr-defined]  # Inspect reads it
            raise error
        if result.exit_code == 126 and result.stderr.endswith(_NOT_EXECUTED):
            raise PermissionError(stderr.strip())
        return ExecResult(result.exit_code == 0, result.exit_code, stdout, stderr)

    # Files

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Make or replace a file, and the directories on its path.

        Raises:
            OSError: the sandbox's user cannot write it; a PermissionError or IsADirectoryError,
                for instance.
            SandboxUnavailableError: the sandbox is gone.
        """
        data = contents.encode("utf-8") if isinstance(contents, str) else contents
        with _available():
            await self._files.awrite(self._absolute(file), data)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """Return the contents of a file.

        Raises:
            OSError: the sandbox's user cannot read it; a FileNotFoundError or PermissionError, for
                instance.
            OutputLimitExceededError: it is larger than Inspect allows.
            UnicodeDecodeError: it is no text.
            SandboxUnavailableError: the sandbox is gone.
        """
        most = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            with _available():
                content = await self._files.aread(self._absolute(file), max_size=most)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR
            raise OutputLimitExceededError(limit, None) from None
        return content.decode("utf-8") if text else content

    def _absolute(self, path: str) -> str:
        return posixpath.join(self._working_dir, path)

    # Further

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        """Return the command for a shell in the container. This host reaches none of its ports.

        Raises:
            SandboxUserUnsupportedError: the shell cannot be another user's.
            ConnectionError: the sandbox does not run.
        """
        command = self._users.command(user, ["sh", "-l"]) if user else ["sh", "-l"]
        if self.box.lm_route is None:
            raise ConnectionError(f"The sandbox {self.box.name} does not run.")
        return SandboxConnection(
            type="rlm-containers",
            command=shlex.join(["rlm-containers", "exec", self.box.name, "--", *command]),
            container=self.box.name,
        )

    def default_polling_interval(self) -> float:
        """Return the seconds between two looks at what the sandbox asks of Inspect."""
        return 0.2


def _sandbox(config: SandboxEnvironmentConfigType | None) -> Sandbox:
    return Sandbox(**ContainerConfig.of(config).arguments, scaffold=False)


@contextlib.contextmanager
def _available() -> Iterator[None]:
    """Raise Inspect's error for a sandbox that is gone."""
    try:
        yield
    except (SandboxClosedError, SandboxLostError) as error:
        raise SandboxUnavailableError(str(error)) from error
