"""The host's half of one live interpreter."""

from rlm_containers.interpreter.clock import CellClock
from rlm_containers.interpreter.deadlines import Deadlines
from rlm_containers.interpreter.interpreter import Interpreter
from rlm_containers.interpreter.pipe import KILLED, Closed, Event, FloodError, Pipe
from rlm_containers.interpreter.results import (
    Artifact,
    CellResult,
    LMCall,
    OutputCallback,
    Prompt,
    StreamName,
    UnsavedVariable,
    WorkspaceFile,
)
from rlm_containers.interpreter.setup import KeptVariable, ProxyAddress, WorkerSetup
from rlm_containers.interpreter.untrusted import UntrustedJSON, printable

__all__ = [
    "KILLED",
    "Artifact",
    "CellClock",
    "CellResult",
    "Closed",
    "Deadlines",
    "Event",
    "FloodError",
    "Interpreter",
    "KeptVariable",
    "LMCall",
    "OutputCallback",
    "Pipe",
    "Prompt",
    "ProxyAddress",
    "StreamName",
    "UnsavedVariable",
    "UntrustedJSON",
    "WorkerSetup",
    "WorkspaceFile",
    "printable",
]
