"""Functions of this process that cells call, and names that no cell can take away."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlm_containers.errors import SandboxError
from rlm_containers.interpreter import Interpreter, WorkerSetup
from rlm_containers.lm import AsyncFunctions, Gateway
from rlm_containers.sandbox.tools import SCAFFOLD, HostTools, ToolFunction


class ToolMethods:
    """What :class:`~rlm_containers.sandbox.sandbox.Sandbox` has for tools."""

    if TYPE_CHECKING:
        scaffold: bool
        tools: HostTools
        _lock: threading.RLock
        _closed: bool
        _interpreter: Interpreter | None
        _tools: Mapping[str, ToolFunction]
        _async_functions: AsyncFunctions
        _gateway: Gateway
        _setup: WorkerSetup

        def _open_interpreter(self) -> Interpreter: ...

        def _not_open(self, how: str) -> SandboxError: ...

    def set_tools(self, tools: Mapping[str, ToolFunction]) -> None:
        """Let cells call functions of this process, in place of those before.

        A cell says ``fetch(x, y=2)``, and ``fetch`` runs here, in a thread of its own, while the
        cell waits. Arguments and result travel as JSON; what is not JSON is a ``TypeError`` in the
        cell. So is an exception: of the same type if that is a built-in one, else a
        ``RuntimeError``. The names come back after a cell has bound them to something else.

        Args:
            tools: functions, which may be async, by their names.

        Raises:
            OptionError: a name cannot be used, or what it names cannot be called.
        """
        made = self._host_tools(tools)
        with self._lock:
            if self._closed:
                raise self._not_open("was closed")
            self._tools = tools
            self.tools = made
            self._gateway.call_tool = made.call
            self._setup.tools = made.describe()
            if self._interpreter is not None:
                self._interpreter.request("tools", None, tools=self._setup.tools)

    def keep(self, *names: str) -> None:
        """Have variables come back after a cell has bound their names to something else.

        What they hold now is a tool from here on, and not shown among the variables.
        """
        with self._lock:
            session = self._open_interpreter()
            self._setup.kept_names += names
            session.request("keep", None, names=list(names))

    def _host_tools(self, tools: Mapping[str, ToolFunction]) -> HostTools:
        reserved = SCAFFOLD if self.scaffold else frozenset()
        return HostTools(tools, reserved, self._async_functions)
