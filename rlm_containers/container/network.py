"""The network of sandboxes with ``network="internal"``: it leads to this host and nowhere else.

All such sandboxes of a process share one network on each engine. The first makes it and the last
removes it. Processes share none, or they would have to agree on when to remove it. The network has
the same labels as the containers, so that :mod:`~rlm_containers.container.prune` finds it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import threading
from collections.abc import Mapping

from runtimes import InternalNetwork, Runtime
from runtimes.forks import ModuleLock
from runtimes.text import get_logger
from runtimes.timelimit import within_limit

logger = get_logger("rlm_containers")


class _Shared:
    """A network and the number of sandboxes that use it."""

    def __init__(self) -> None:
        self.name = f"rlm-containers-internal-{os.getpid()}-{secrets.token_hex(4)}"
        self.network: InternalNetwork | None = None
        self.users = 0
        self.lock = threading.Lock()


_shared: dict[tuple[Runtime, int], _Shared] = {}
_shared_lock = ModuleLock()


class NetworkLease:
    """One sandbox's use of the network.

    Args:
        runtime: the engine.

    Raises:
        UnsupportedByEngineError: the engine has no such networks.
    """

    def __init__(self, runtime: Runtime) -> None:
        runtime.check_internal_network()
        self._runtime = runtime
        with _shared_lock:
            # The process is a part of the key: a forked one must not remove its parent's network.
            self._shared = _shared.setdefault((runtime, os.getpid()), _Shared())
        self._held = False

    def remove_command(self, remove_container: tuple[str, ...]) -> tuple[str, ...]:
        """Make a command line that removes a container and then the network.

        Engines refuse to remove a network that still has containers: the last sandbox removes it.
        """
        remove_network = self._runtime.remove_network_command(self._shared.name)
        script = f"{shlex.join(remove_container)}; {shlex.join(remove_network)}"
        return ("/bin/sh", "-c", script)

    def acquire(self, labels: Mapping[str, str]) -> InternalNetwork:
        """Use the network, and make it if this sandbox is the first.

        Args:
            labels: the network's labels.

        Raises:
            EngineCommandError: the engine refused.
        """
        shared = self._shared
        with within_limit(shared.lock):
            if shared.network is None:
                try:
                    shared.network = self._runtime.make_internal_network(shared.name, labels)
                except BaseException:
                    self._remove()  # it may be there half-made
                    raise
            shared.users += 1
            self._held = True
            return shared.network

    def release(self) -> None:
        """Remove the network if no other sandbox uses it. The container must be gone."""
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
            # Closing must go on, and prune() finds the network by its label.
            logger.warning("%s", error)
