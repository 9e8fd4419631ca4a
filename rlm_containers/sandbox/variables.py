"""Values of this process that cells find as variables."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rlm_containers.errors import OptionError, WorkspaceError
from rlm_containers.interpreter import Interpreter, KeptVariable, WorkerSetup
from rlm_containers.options import SandboxOptions
from rlm_containers.sandbox.context import Context, encode_context
from rlm_containers.state import Workspace


class ContextMethods:
    """What :class:`~rlm_containers.sandbox.sandbox.Sandbox` has for contexts."""

    if TYPE_CHECKING:
        name: str
        options: SandboxOptions
        _lock: threading.RLock
        _workspace: Workspace | None
        _setup: WorkerSetup
        # Of each variable that was loaded: its file, if that may go, and how often it was.
        _files: dict[str, tuple[str | None, int]]

        def _open_interpreter(self) -> Interpreter: ...

    def load(self, name: str, value: Context, *, keep: bool = False) -> None:
        """Bind a variable in the container to a value of this process.

        Args:
            name: the variable's name.
            value: a string of any length, or what JSON can express: a dict or a list.
            keep: whether the name belongs to the host: it comes back after a cell has bound it
                to something else. For ``history`` only.

        Raises:
            ContextError: the value cannot be encoded.
            WorkspaceError: there is no room for it.
            SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        if not _is_identifier(name):
            raise OptionError(f"{name!r} is not the name of a variable.")
        kind, chunks = encode_context(name, value)
        with self._lock:
            session = self._open_interpreter()
            assert self._workspace is not None
            # Never a file that the checkpoint may refer to: the old value is needed until the
            # next one is written.
            superseded, count = self._files.get(name, (None, 0))
            file = _file_name(name, count, kind)
            while self.options.session and self._workspace.has(file):  # from an earlier sandbox
                count += 1
                file = _file_name(name, count, kind)
            self._workspace.write(file, chunks)
            self._files[name] = (file, count + 1)
            kept = self._setup.kept
            kept[:] = [variable for variable in kept if variable.name != name]
            if keep:
                kept.append(KeptVariable(name, file, kind))
            told = {"name": name, "file": file, "kind": kind, "keep": keep}
            outcome = session.request("load", None, **told, superseded=superseded)
            if outcome.status != "ok":
                raise WorkspaceError(
                    f"The variable {name} could not be loaded: {outcome.stderr.strip()}",
                    container=self.name,
                )


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _file_name(variable: str, count: int, kind: str) -> str:
    suffix = "txt" if kind == "text" else "json"
    return f"{variable}-{count}.{suffix}" if count else f"{variable}.{suffix}"
