"""Containers by command line: docker, podman and kubectl behind one narrow interface.

This package knows nothing of language models and imports nothing of ``rlm_containers``. Errors are
in :mod:`runtimes.errors`.
"""

from runtimes.base import ContainerRecord, EngineInfo, ImageRecord, NetworkRecord, Runtime
from runtimes.build import PROXY_VARIABLES
from runtimes.command import EngineCommand
from runtimes.detect import get_runtime, runtime_names
from runtimes.process import ContainerProcess
from runtimes.spec import (
    BuildSpec,
    ContainerSpec,
    GpuRequest,
    HostRoute,
    InternalNetwork,
    Mount,
    OwnDirectory,
    Placement,
)

__all__ = [
    "PROXY_VARIABLES",
    "BuildSpec",
    "ContainerProcess",
    "ContainerRecord",
    "ContainerSpec",
    "EngineCommand",
    "EngineInfo",
    "GpuRequest",
    "HostRoute",
    "ImageRecord",
    "InternalNetwork",
    "Mount",
    "NetworkRecord",
    "OwnDirectory",
    "Placement",
    "Runtime",
    "get_runtime",
    "runtime_names",
]
