"""How a sandbox begins and ends: what is made in which order, and removed in which."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlm_containers.container import (
    HOST_ALIAS,
    Launch,
    Limits,
    NetworkLease,
    Reaper,
    SandboxImage,
    prune_once,
)
from rlm_containers.errors import SandboxError
from rlm_containers.interpreter import CellClock, Deadlines, Interpreter, Pipe
from rlm_containers.lm import LMBroker, LMProxy, PipeCalls
from rlm_containers.options import SandboxOptions
from rlm_containers.state import Home, KeptHome, Owner, Workspace
from runtimes import HostRoute, InternalNetwork, Runtime, get_runtime

logger = logging.getLogger("rlm_containers")

#: Seconds for a container to end by itself once its pipe is closed.
_CLOSE_TIMEOUT = 10.0


class LifeMethods:
    """What :class:`~rlm_containers.sandbox.sandbox.Sandbox` has for its begin and its end."""

    if TYPE_CHECKING:
        name: str
        options: SandboxOptions
        setup_code: str | None
        broker: LMBroker
        python_version: str | None
        _image: SandboxImage
        _clock: CellClock
        _runtime: Runtime | None
        _home: Home | None
        _seed: Callable[[Workspace], None] | None
        _workspace: Workspace | None
        _reaper: Reaper | None
        _lease: NetworkLease | None
        _pipe: Pipe | None
        _proxy: LMProxy | None
        _interpreter: Interpreter | None
        _calls: PipeCalls
        _told: dict[str, Any]
        _closed: bool
        _lock: threading.RLock

        def run_setup(self, code: str, what: str = "setup code") -> None: ...

        def _go_on(self, version: str) -> None: ...

        def _settle_for_good(self) -> None: ...

        def _not_open(self, how: str) -> SandboxError: ...

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Start the container and its interpreter. Does nothing if it is running.

        Returns:
            This sandbox.

        Raises:
            ContainersError: one of its subclasses, see :mod:`rlm_containers.errors`; nothing is
                left running.
        """
        with self._lock:
            if self._closed:
                raise self._not_open("was closed")
            if self._interpreter is not None:
                return self
            atexit.register(self.close)
            try:
                self._start()
            except BaseException:
                self.close()
                raise
        return self

    def _start(self) -> None:
        self._runtime = runtime = get_runtime(self.options.runtime)
        limits = Limits.on(runtime.info(), self.options, self.name)
        owner = Owner.current(self.options.session or "")
        labels = owner.labels()
        remove = runtime.remove_command(self.name)
        if self.options.effective_network == "internal":
            self._lease = NetworkLease(runtime)
            remove = self._lease.remove_command(remove)
        session = self.options.session
        new = self._seed is not None
        self._home = home = KeptHome(self.name, session, new=new) if session else Home(self.name)
        # In this order, so that nothing exists at any time that nobody would remove.
        self._reaper = Reaper(
            self.name, home.passing_workspace, remove, also=home.passing_snapshots, lock=home.lock
        )
        self._workspace = home.open_workspace(
            runtime.workspace_user(self._user()), owner.json(runtime=repr(runtime))
        )
        if self._seed is not None:
            self._seed(self._workspace)
        launch = Launch(
            runtime=runtime,
            image=self._image,
            options=self.options,
            limits=limits,
            network=self._lease.acquire(labels) if self._lease else self.options.plain_network,
            workspace=self._workspace,
            name=self.name,
            labels=labels,
            on_call=self._calls.take,
            watch=self._reaper.watch,
        )
        self._pipe, self.python_version = launch.run()
        self._connect_lm(runtime, launch.network)
        self._told["file_limit"] = limits.file
        self._interpreter = Interpreter(
            self._pipe,
            self._told,
            self.options.max_output,
            deadlines=Deadlines(self._clock, self.options.cell_timeout, self.options.start_timeout),
            abandon=self._remove_container,
            memory_loss=launch.memory_loss,
        )
        self._interpreter.reports.on_saved = home.note
        self._interpreter.start()
        prune_once(runtime)
        self._go_on(self.python_version)
        if self.setup_code and home.is_new and self._seed is None:
            self.run_setup(self.setup_code)
        home.begin(self.python_version, self.options.image, runtime.name)

    def _user(self) -> tuple[int, int] | None:
        if self.options.user is None:
            return None
        uid, _, gid = self.options.user.partition(":")
        return int(uid), int(gid)

    def _connect_lm(self, runtime: Runtime, network: str | InternalNetwork) -> None:
        """Open the proxy, where a container can reach it."""
        self._told["lm"] = self.broker.connected
        if not self.broker.connected or network == "none":
            return
        route: HostRoute | None
        route = network.route if isinstance(network, InternalNetwork) else runtime.host_route()
        if route is None:
            return
        try:
            self._proxy = LMProxy(route.bind, self.broker.handle, self._clock.waiting)
        except OSError as error:
            logger.warning(
                "%s: the proxy cannot listen on %s (%s)", self.name, route.bind, error.strerror
            )
            return
        self._told["proxy"] = {
            "host": HOST_ALIAS,
            "port": self._proxy.port,
            "token": self._proxy.token,
        }

    def close(self) -> None:
        """End the container and remove what it used. May be called at any time, and again.

        A cell that runs in another thread ends with :class:`SandboxLostError`.

        Raises:
            WorkspaceError: the workspace could not be removed.
        """
        if not self._lock.acquire(blocking=False):
            if self._pipe is not None:
                self._pipe.hang_up()
            self._lock.acquire()
        try:
            self._close()
        finally:
            self._lock.release()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            if self.options.session:
                self._settle_for_good()
        finally:
            self._end()

    def _end(self) -> None:
        if self._pipe is not None:
            self._pipe.close(_CLOSE_TIMEOUT)
            ended = self._pipe.closed
            if (ended is None or ended.exit_code != 0) and self._runtime is not None:
                # Not by itself, so --rm may not have had its chance.
                self._remove_container()
        if self._proxy is not None:
            self._proxy.close()
        self._calls.close()
        if self._lease is not None:
            self._lease.release()
        try:
            if self._home is not None:
                self._home.close()
        finally:
            if self._reaper is not None:
                self._reaper.dismiss()
            if self._home is not None:
                self._home.release()

    def _remove_container(self) -> None:
        assert self._runtime is not None
        try:
            self._runtime.remove(self.name)
        except Exception as error:
            # An engine that is gone has nothing to remove; closing must go on in any case.
            logger.warning("%s: %s", self.name, error)
