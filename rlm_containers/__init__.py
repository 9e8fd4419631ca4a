"""Container sandboxes for recursive language models, on docker, podman and Kubernetes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_containers.errors import ContainersError
    from rlm_containers.interpreter import (
        Artifact,
        CellResult,
        CommandOutput,
        CommandResult,
        LMCall,
        UnsavedVariable,
        WorkspaceFile,
    )
    from rlm_containers.options import SandboxOptions
    from rlm_containers.repl import ContainerREPL
    from rlm_containers.sandbox import Branch, Branches, Files, Sandbox, SandboxPool
    from rlm_containers.state import Snapshot
    from runtimes import Mount

__all__ = [
    "Artifact",
    "Branch",
    "Branches",
    "CellResult",
    "CommandOutput",
    "CommandResult",
    "ContainerREPL",
    "ContainersError",
    "Files",
    "LMCall",
    "Mount",
    "Sandbox",
    "SandboxOptions",
    "SandboxPool",
    "Snapshot",
    "UnsavedVariable",
    "WorkspaceFile",
    "register",
]

__version__ = "0.1.0"

#: Maps each public name to its module, which is imported with the first use.
_MODULES = {
    "Artifact": "rlm_containers.interpreter",
    "Branch": "rlm_containers.sandbox",
    "Branches": "rlm_containers.sandbox",
    "CellResult": "rlm_containers.interpreter",
    "CommandOutput": "rlm_containers.interpreter",
    "CommandResult": "rlm_containers.interpreter",
    "ContainerREPL": "rlm_containers.repl",
    "ContainersError": "rlm_containers.errors",
    "Files": "rlm_containers.sandbox",
    "LMCall": "rlm_containers.interpreter",
    "Mount": "runtimes",
    "Sandbox": "rlm_containers.sandbox",
    "SandboxOptions": "rlm_containers.options",
    "SandboxPool": "rlm_containers.sandbox",
    "Snapshot": "rlm_containers.state",
    "UnsavedVariable": "rlm_containers.interpreter",
    "WorkspaceFile": "rlm_containers.interpreter",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def register() -> None:
    """Make ``RLM(environment="docker")`` of rlms use this project's container environment.

    Raises:
        ImportError: rlms is not installed.
    """
    from rlm_containers.integrations.rlms import register as register_rlms

    register_rlms()
