"""Container sandboxes for recursive language models, on docker and podman."""

from rlm_containers.artifacts import Artifact
from rlm_containers.cell import CellResult
from rlm_containers.errors import ContainersError
from rlm_containers.lm.broker import LMCall
from rlm_containers.options import SandboxOptions
from rlm_containers.sandbox import Sandbox
from runtimes import Mount

__all__ = [
    "Artifact",
    "CellResult",
    "ContainersError",
    "LMCall",
    "Mount",
    "Sandbox",
    "SandboxOptions",
    "register",
]

__version__ = "0.1.0"


def register() -> None:
    """Make ``RLM(environment="docker")`` of rlms use this project's container environment.

    Raises:
        ImportError: rlms is not installed.
    """
    from rlm_containers.integrations import rlms

    rlms.register()
