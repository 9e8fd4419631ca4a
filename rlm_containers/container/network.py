"""The network of sandboxes with ``network="internal"``: it leads to this host and nowhere else.

All such sandboxes of this process share one on each engine, made with the first and removed with
the last. Each process has its own: two that make, find and remove the same at once would have to
agree on it. It carries the same label as the containers do.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import threading
from collections.abc import Mapping

from runtimes import InternalNetwork, Runtime

logger = logging.getLogger("rlm_containers")


class _Shared:
    """A network and how many sandboxes have it."""

    def __init__(self) -> None:
        self.name = f"rlm-containers-internal-{os.getpid()}-{secrets.token_hex(4)}"
        self.network: InternalNetwork | None = None
        self.users = 0
        self.lock = threading.Lock()


_shared: dict[tuple[Runtime, int], _Shared] = {}
_shared_lock = threading.Lock()


class NetworkLease:
    """One sandbox's share in the network.

    Args:
        runtime: the engine.

    Raises:
        UnsupportedByEngineError: it has no such networks.
    """

    def __init__(self, runtime: Runtime) -> None:
        runtime.check_internal_network()
        self._runtime = runtime
        with _shared_lock:
            # By the process, too: a forked one must not remove its parent's.
            self._shared = _shared.setdefault((runtime, os.getpid()), _Shared())
        self._held = False

    def remove_command(self, remove_container: tuple[str, ...]) -> tuple[str, ...]:
        """A command line that removes a container and then the network, unless others use it.

        Engines refuse to remove a network that has containers, so the last of many removes it.
        """
        remove_network = self._runtime.remove_network_command(self._shared.name)
        script = f"{shlex.join(remove_container)}; {shlex.join(remove_network)}"
        return ("/bin/sh", "-c", script)

    def take(self, labels: Mapping[str, str]) -> InternalNetwork:
        """Make the network, unless it is there.

        Args:
            labels: for the network to be found by.

        Raises:
            EngineCommandError: the engine refused.
        """
        shared = self._shared
        with shared.lock:
            if shared.network is None:
                try:
                    shared.network = self._runtime.make_internal_network(shared.name, labels)
                except BaseException:
                    self._remove()  # what there is of it
                    raise
            shared.users += 1
            self._held = True
            return shared.network

    def give_back(self) -> None:
        """Remove the network if nobody else has it. The container must be gone."""
        shared = self._shared
        with shared.lock:
            if not self._held:
                return
            self._held = False
            shared.users -= 1
            if shared.users == 0:
                shared.network = None
                self._remove()

    def _remove(self) -> None:
        try:
            self._runtime.remove_network(self._shared.name)
        except Exception as error:
            # Closing must go on; what is left carries a label.
            logger.warning("%s", error)
