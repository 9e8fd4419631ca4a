"""Sandboxes for Inspect: ``Task(sandbox="rlm-containers")``.

Written against inspect-ai 0.3.285. Inspect finds this package by its entry point. Nothing outside
of it imports ``inspect_ai``.
"""

from rlm_containers.integrations.inspect_ai.config import ContainerConfig
from rlm_containers.integrations.inspect_ai.environment import ContainerSandboxEnvironment

__all__ = ["ContainerConfig", "ContainerSandboxEnvironment"]
