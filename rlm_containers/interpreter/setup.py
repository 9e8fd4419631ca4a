"""What every worker of a sandbox is given at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ProxyAddress:
    """Where a container reaches the language model proxy of this process.

    Attributes:
        host: a name that resolves inside the container.
        port: the TCP port.
        token: the bearer token that the proxy asks for. Never part of ``repr()``.
    """

    host: str
    port: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class KeptVariable:
    """A variable that belongs to the host: every worker binds it anew.

    Attributes:
        name: the variable's name.
        file: the file in the workspace that holds its value.
        kind: how the file is read: ``"text"``, ``"json"`` or ``"marshal"``.
        size: its bytes.
        checksum: its CRC-32.
    """

    name: str
    file: str
    kind: str
    size: int
    checksum: int


@dataclass(kw_only=True)
class WorkerSetup:
    """What every worker of a sandbox is given at its start.

    The fields may change while the sandbox runs. A worker that replaces another gets the values
    of that time.

    Attributes:
        has_model: whether ``llm_query()`` has a model behind it.
        proxy: how the worker reaches the model over HTTP; ``None`` to use the pipe.
        env: environment variables to set.
        file_limit: the largest file that cells may write, in bytes; ``None`` for no limit.
        core_files: whether processes that crash may leave their memory in a file.
        scaffold: whether cells have what an RLM promises them, such as ``llm_query``.
        tools: the host's functions that cells may call, each as ``{"name", "signature", "doc"}``.
        kept: the variables that belong to the host.
        kept_names: names that come back after a cell has bound them to something else.
        outlives: whether there is a session, which outlives the container. The worker then also
            reports what each checkpoint holds.
        durable: whether a checkpoint must have reached the disk before it counts as written.
        heirs: whether a forked child of the worker may write the checkpoints.
    """

    has_model: bool = False
    proxy: ProxyAddress | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    file_limit: int | None = None
    core_files: bool = False
    scaffold: bool = True
    tools: list[dict[str, str]] = field(default_factory=list)
    kept: list[KeptVariable] = field(default_factory=list)
    kept_names: list[str] = field(default_factory=list)
    outlives: bool = False
    durable: bool = False
    heirs: bool = True

    def message(self) -> dict[str, Any]:
        """Return the content of the ``start`` request, see ``guest/wire.py``."""
        return {
            "lm": self.has_model,
            "proxy": None if self.proxy is None else asdict(self.proxy),
            "env": dict(self.env),
            "file_limit": self.file_limit,
            "core_files": self.core_files,
            "scaffold": self.scaffold,
            "tools": self.tools,
            # Each as the `load` request that binds it.
            "kept": [{**asdict(item), "keep": True, "superseded": None} for item in self.kept],
            "kept_names": self.kept_names,
            "kept_session": self.outlives,
            "durable": self.durable,
            "heirs": self.heirs,
        }
