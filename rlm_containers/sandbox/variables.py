"""The variables and functions that this process gives to cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from rlm_containers.errors import OptionError, WorkspaceError
from rlm_containers.interpreter import KeptVariable, WorkerSetup
from rlm_containers.lm import AsyncFunctions
from rlm_containers.options import SandboxOptions
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.sandbox.tools import SCAFFOLD, HostTools, ToolFunction
from rlm_containers.sandbox.values import SUFFIXES, Context, Kind, Summed, encode
from runtimes.text import brief

#: Characters of a variable's name, which is also that of a file.
_LONGEST_NAME = 200


class Variables:
    """The variables and functions that the host gives to the cells of one sandbox.

    Args:
        life: the sandbox's lifecycle.
        options: its options.
        tools: functions of this process, by their names.
        scaffold: whether cells find the names that an RLM promises them.
        async_functions: waits for the results of async functions.

    Attributes:
        setup: what each worker is given at its start. Kept up to date.
        tools: the functions that cells may call.

    Raises:
        OptionError: a name cannot be used, or what it names cannot be called.
    """

    def __init__(
        self,
        life: Lifecycle,
        options: SandboxOptions,
        tools: Mapping[str, ToolFunction],
        *,
        scaffold: bool,
        async_functions: AsyncFunctions,
    ) -> None:
        self._life = life
        self._reserved = SCAFFOLD if scaffold else frozenset()
        self._async_functions = async_functions
        self.tools = self._host_tools(tools)
        self.setup = WorkerSetup(
            env=options.env,
            scaffold=bool(scaffold),
            tools=self.tools.describe(),
            outlives=options.session is not None,
            durable=options.reaches_disk,
            heirs=options.has_heirs,
        )
        # Maps each loaded variable to its file (None if it must stay) and its load count.
        self._loaded: dict[str, tuple[str | None, int]] = {}

    def load(self, name: str, value: Context, *, keep: bool) -> None:
        """See :meth:`Sandbox.load`."""
        if not _is_identifier(name):
            raise OptionError(f"{brief(name)} is not the name of a variable.")
        kind, chunks = encode(name, value)
        running = self._life.running
        # Never overwrite a file that the checkpoint may refer to: the old value is needed until
        # the next checkpoint is written.
        superseded, count = self._loaded.get(name, (None, 0))
        file = _file_name(name, count, kind)
        # An earlier sandbox of a named session may have left such files.
        while self.setup.outlives and running.workspace.has(file):
            count += 1
            file = _file_name(name, count, kind)
        summed = Summed(chunks)
        try:
            size = running.workspace.write(file, summed)
        except WorkspaceError as error:
            error.name_container(self._life.name)
            raise
        variable = KeptVariable(name, file, kind, size, summed.checksum)
        self._loaded[name] = (file, count + 1)
        self.setup.kept = [other for other in self.setup.kept if other.name != name]
        if keep:
            self.setup.kept.append(variable)
        reply = running.interpreter.request(
            "load", None, **asdict(variable), keep=keep, superseded=superseded
        )
        if reply.status != "ok":
            raise WorkspaceError(
                f"The variable {name} could not be loaded: {reply.stderr.strip()}",
                container=self._life.name,
            )

    def keep(self, names: Iterable[str]) -> None:
        """See :meth:`Sandbox.keep`."""
        running = self._life.running
        self.setup.kept_names += names
        running.interpreter.request("keep", None, names=list(names))

    def set_tools(self, tools: Mapping[str, ToolFunction]) -> None:
        """See :meth:`Sandbox.set_tools`."""
        made = self._host_tools(tools)
        if self._life.closed:
            raise self._life.not_running()
        self.tools = made
        self.setup.tools = made.describe()
        if self._life.is_running:
            running = self._life.running
            running.gateway.call_tool = made.call
            running.interpreter.request("tools", None, tools=self.setup.tools)

    def host_files(self) -> set[str]:
        """Return the files of the variables that belong to the host."""
        return {variable.file for variable in self.setup.kept}

    def retain_files(self) -> None:
        """Keep the file of each variable even when the variable is loaded again.

        Needed after a restore and in a fork, where other variables may refer to the files.
        """
        self._loaded = {name: (None, count) for name, (_, count) in self._loaded.items()}

    def copy_from(self, other: Variables) -> None:
        """Take over what belongs to the host in the sandbox that this one is a fork of."""
        self.setup.kept = list(other.setup.kept)
        self.setup.kept_names = list(other.setup.kept_names)
        self._loaded = dict(other._loaded)
        self.retain_files()

    def _host_tools(self, tools: Mapping[str, ToolFunction]) -> HostTools:
        return HostTools(tools, self._reserved, self._async_functions)


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and len(name) <= _LONGEST_NAME and name.isidentifier()


def _file_name(variable: str, count: int, kind: Kind) -> str:
    suffix = SUFFIXES[kind]
    return f"{variable}-{count}.{suffix}" if count else f"{variable}.{suffix}"
