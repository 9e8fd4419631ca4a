"""Sandboxes: one container and one live interpreter each."""

from rlm_containers.sandbox.awaiting import call_in_thread, in_thread
from rlm_containers.sandbox.branches import Branch, Branches
from rlm_containers.sandbox.files import Files
from rlm_containers.sandbox.pool import SandboxPool
from rlm_containers.sandbox.sandbox import Sandbox
from rlm_containers.sandbox.tools import ToolFunction, check_names
from rlm_containers.sandbox.values import Context

__all__ = [
    "Branch",
    "Branches",
    "Context",
    "Files",
    "Sandbox",
    "SandboxPool",
    "ToolFunction",
    "call_in_thread",
    "check_names",
    "in_thread",
]
