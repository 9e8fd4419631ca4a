"""The host's half of one live interpreter."""

from rlm_containers.interpreter.branches import BranchInterpreter, BranchPipe, BranchTable
from rlm_containers.interpreter.clock import CellClock
from rlm_containers.interpreter.command_request import CommandRequest
from rlm_containers.interpreter.commands import Command, Commands
from rlm_containers.interpreter.conversation import Conversation
from rlm_containers.interpreter.deadlines import Deadlines
from rlm_containers.interpreter.direct import DirectSocket
from rlm_containers.interpreter.files import FileCall, FileCalls
from rlm_containers.interpreter.interpreter import Interpreter
from rlm_containers.interpreter.items import KILLED, Closed, Event, Message
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.pipe import FloodError, Pipe
from rlm_containers.interpreter.reader import is_reader_thread
from rlm_containers.interpreter.results import (
    Artifact,
    CellResult,
    CommandCallback,
    CommandOutput,
    CommandResult,
    LMCall,
    OutputCallback,
    Prompt,
    StreamName,
    UnsavedVariable,
    WorkspaceFile,
)
from rlm_containers.interpreter.setup import KeptVariable, ProxyAddress, WorkerSetup
from rlm_containers.interpreter.threads import start_thread
from rlm_containers.interpreter.untrusted import (
    UntrustedJSON,
    greatest_cost,
    parse_cost,
    printable,
)
from rlm_containers.interpreter.writer import Frame

__all__ = [
    "KILLED",
    "Artifact",
    "BranchInterpreter",
    "BranchPipe",
    "BranchTable",
    "CellClock",
    "CellResult",
    "Closed",
    "Command",
    "CommandCallback",
    "CommandOutput",
    "CommandRequest",
    "CommandResult",
    "Commands",
    "Conversation",
    "Deadlines",
    "DirectSocket",
    "Event",
    "FileCall",
    "FileCalls",
    "FloodError",
    "Frame",
    "Interpreter",
    "KeptVariable",
    "LMCall",
    "Message",
    "OutputCallback",
    "Pipe",
    "Prompt",
    "ProxyAddress",
    "Reply",
    "StreamName",
    "UnsavedVariable",
    "UntrustedJSON",
    "WorkerSetup",
    "WorkspaceFile",
    "greatest_cost",
    "is_reader_thread",
    "parse_cost",
    "printable",
    "start_thread",
]
