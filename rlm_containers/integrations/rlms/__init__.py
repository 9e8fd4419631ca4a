"""Run the RLMs of rlms in containers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_containers.integrations.rlms.completion import Completion, Model
    from rlm_containers.integrations.rlms.environment import ContainerEnvironment, register
    from rlm_containers.integrations.rlms.page import render_report, write_report
    from rlm_containers.integrations.rlms.trajectory import Trajectory, Turn

__all__ = [
    "Completion",
    "ContainerEnvironment",
    "Model",
    "Trajectory",
    "Turn",
    "register",
    "render_report",
    "write_report",
]

#: Maps each name to its module, which is imported with the first use.
_MODULES = {
    "Completion": "completion",
    "Model": "completion",
    "ContainerEnvironment": "environment",
    "register": "environment",
    "render_report": "page",
    "write_report": "page",
    "Trajectory": "trajectory",
    "Turn": "trajectory",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
