"""Sandboxes for the OpenAI Agents SDK: ``SandboxRunConfig(client=ContainerSandboxClient())``.

Written against openai-agents 0.24. Nothing outside this package imports it.
"""

from rlm_containers.integrations.openai_agents.client import ContainerSandboxClient
from rlm_containers.integrations.openai_agents.session import ContainerSandboxSession
from rlm_containers.integrations.openai_agents.state import (
    ContainerSandboxClientOptions,
    ContainerSandboxSessionState,
)

__all__ = [
    "ContainerSandboxClient",
    "ContainerSandboxClientOptions",
    "ContainerSandboxSession",
    "ContainerSandboxSessionState",
]
