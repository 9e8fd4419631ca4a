"""Containers by command line: docker and podman behind one narrow interface.

Nothing here knows of language models, and nothing here imports ``rlm_containers``.
"""

from runtimes.base import ContainerRecord, EngineInfo, ImageRecord, Runtime
from runtimes.detect import get_runtime
from runtimes.network import HostRoute, InternalNetwork
from runtimes.process import ContainerProcess
from runtimes.spec import BuildSpec, ContainerSpec, GpuRequest, Mount

__all__ = [
    "BuildSpec",
    "ContainerProcess",
    "ContainerRecord",
    "ContainerSpec",
    "EngineInfo",
    "GpuRequest",
    "HostRoute",
    "ImageRecord",
    "InternalNetwork",
    "Mount",
    "Runtime",
    "get_runtime",
]
