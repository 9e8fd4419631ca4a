"""Starts the containers of sandboxes, and removes what is left of them."""

from rlm_containers.container.launch import HOST_ALIAS, Launch, SandboxImage
from rlm_containers.container.limits import Limits
from rlm_containers.container.network import NetworkLease
from rlm_containers.container.prune import prune, prune_once
from rlm_containers.container.reaper import Reaper

__all__ = [
    "HOST_ALIAS",
    "Launch",
    "Limits",
    "NetworkLease",
    "Reaper",
    "SandboxImage",
    "prune",
    "prune_once",
]
