"""Starts the containers of sandboxes, and removes what is left of them."""

from rlm_containers.container.container import Container, new_name
from rlm_containers.container.image import SandboxImage
from rlm_containers.container.launch import HOST_ALIAS
from rlm_containers.container.pool import (
    IDLE_TIMEOUT,
    TOLD_LATER,
    ContainerPool,
    close_pools,
    shared_pool,
)
from rlm_containers.container.prune import prune, prune_once
from rlm_containers.container.reaper import Reaper

__all__ = [
    "HOST_ALIAS",
    "IDLE_TIMEOUT",
    "TOLD_LATER",
    "Container",
    "ContainerPool",
    "Reaper",
    "SandboxImage",
    "close_pools",
    "new_name",
    "prune",
    "prune_once",
    "shared_pool",
]
