"""Container sandboxes for recursive language models, on docker and podman."""

from rlm_containers.errors import ContainersError
from rlm_containers.interpreter.results import CellResult
from rlm_containers.lm.broker import LMCall
from rlm_containers.options.options import SandboxOptions
from rlm_containers.sandbox.artifacts import Artifact
from rlm_containers.sandbox.sandbox import Sandbox
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
    from rlm_containers.integrations.rlms.environment import register as register_rlms

    register_rlms()
