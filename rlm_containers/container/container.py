"""One container with its workspace: what it needs on this host, made and removed in order."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

from rlm_containers.container.bytecode import ByteCode
from rlm_containers.container.image import SandboxImage
from rlm_containers.container.launch import Launch
from rlm_containers.container.limits import Limits
from rlm_containers.container.network import NetworkLease
from rlm_containers.container.reaper import Reaper
from rlm_containers.errors import ContainersError, SandboxLostError, SandboxStartError
from rlm_containers.interpreter import Closed, Event, Message, Pipe
from rlm_containers.options import SandboxOptions
from rlm_containers.state import Home, Ids, KeptHome, Owner, Workspace
from runtimes import HostRoute, InternalNetwork, Runtime, get_runtime
from runtimes.text import get_logger
from runtimes.timelimit import TimeLimit

logger = get_logger("rlm_containers")

#: Seconds between two looks whether a container that was lost is removed.
_REMOVAL_CHECK = 0.1

#: Seconds for a container to end by itself once its pipe is closed.
_CLOSE_TIMEOUT = 10.0


def new_name() -> str:
    """Return a name for a container that no other has."""
    return f"rlm-{secrets.token_hex(6)}"


class Container:
    """A container whose guest is up, and that has been told nothing yet.

    Everything that depends on who will use it is told later, over the pipe: the language model, the
    functions of the host, environment variables and the token of the proxy. So it can be started
    before anybody wants it.

    Args:
        name: its name.
        options: the options of the sandbox.
        image: its image.

    Attributes:
        name: as it was given.
        runtime: the engine. This and what follows exist once :meth:`start` has returned.
        limits: how much it may use.
        memory: the bytes of memory that it can have at most; ``None`` if that is not known.
        home: keeps the workspace, the snapshots and the manifest.
        workspace: the directory of this host behind its ``/workspace``, or for a copy of that.
        is_shared: whether it is the former.
        reaper: cleans up if this process dies.
        network: what it can reach.
        launch: how it was started.
        pipe: the pipe to its guest; ``None`` until that is up.
        python_version: the version of its Python, such as ``"3.11.4"``.
    """

    runtime: Runtime
    limits: Limits
    memory: int | None
    workspace: Workspace
    is_shared: bool
    network: Literal["bridge", "none"] | InternalNetwork
    launch: Launch
    python_version: str
    _byte_code: ByteCode

    def __init__(self, name: str, options: SandboxOptions, image: SandboxImage) -> None:
        self.name = name
        self.pipe: Pipe | None = None
        self._options = options
        self._image = image
        self._opening: Pipe | None = None  # of a client that may not come up
        self._home: Home | None = None
        self._reaper: Reaper | None = None
        self._undo = ExitStack()

    @property
    def home(self) -> Home:
        assert self._home is not None
        return self._home

    @property
    def reaper(self) -> Reaper:
        assert self._reaper is not None
        return self._reaper

    def start(
        self,
        limit: TimeLimit,
        *,
        new: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Start it, and wait for the hello of its guest.

        If this fails, :meth:`end` and :meth:`remove` undo what was made.

        Args:
            limit: how long that may take.
            new: whether its session must not exist yet.
            check: called now and then. What it raises ends the start.

        Raises:
            ContainersError: one of its subclasses.
        """
        options = self._options
        self.runtime = runtime = get_runtime(options.runtime)
        info = runtime.info()
        self.limits = Limits.on(info, options, self.name)
        self.memory = self.limits.memory or info.memory
        owner = Owner.current(options.session or "")
        remove = runtime.remove_command(self.name)
        lease = NetworkLease(runtime) if options.effective_network == "internal" else None
        if lease is not None:
            remove = lease.remove_command(remove)
        user = self._workspace_user()
        with limit.paused():  # the engine has no part in this, and there may be many files
            home, reaper = self._open_home(remove, new=new)
            self.workspace = home.open_workspace(user, owner.json(runtime=repr(runtime)))
        check()
        self.network = options.plain_network
        if lease is not None:
            self._undo.callback(lease.release)
            self.network = lease.acquire(owner.labels())

        def note(pipe: Pipe) -> None:
            self._opening = pipe
            check()

        self.launch = Launch(
            runtime=runtime,
            image=self._image,
            options=options,
            limits=self.limits,
            network=self.network,
            workspace=self.workspace,
            name=self.name,
            labels=owner.labels(),
            limit=limit,
            watch=reaper.watch,
            opened=note,
        )
        launched = self.launch.run()
        self.pipe, self.python_version = launched.pipe, launched.python
        self.is_shared = launched.shared
        self._byte_code = launched.byte_code
        # What a user mounts or sets there is not the image's, nor is what earlier cells have left.
        is_of_image = not (options.mounts or options.run_args) and self.home.state == "made"
        wanted = self._byte_code.is_wanted and is_of_image
        if wanted and not self._ask(limit.left(), compiled=True):
            self._byte_code.give_up()

    def restart(self, limit: TimeLimit) -> Pipe:
        """Start it anew, once it was lost. It has the same workspace on this host.

        Args:
            limit: how long that may take.

        Returns:
            The pipe to its guest.

        Raises:
            ContainersError: one of its subclasses.
        """
        self.end()
        # The engine may still be removing it, and until then has no second one of the name.
        while self.name in {found.name for found in self.runtime.find(self.launch.labels)}:
            self.runtime.remove(self.name)
            time.sleep(min(_REMOVAL_CHECK, limit.left()))
        launched = replace(self.launch, limit=limit).run()
        self.pipe = launched.pipe
        return launched.pipe

    def prepare(self, limit: TimeLimit) -> None:
        """Have the guest import all that it will need. Wait for that.

        Raises:
            SandboxStartError: it did not do so in time.
        """
        if not self.answers(limit.left()):
            raise SandboxStartError(
                "The container is up, but its interpreter does not answer.",
                remedy="See what the container is busy with.",
                container=self.name,
            )

    def leave_client(self) -> None:
        """End the engine's client, if the guest can do without. It takes 5 to 10 MB."""
        pipe = self.pipe
        if pipe is None or not self.runtime.outlives_client:
            return
        since = time.time() - 1  # the engine's clock may differ from ours

        def ask_status() -> int | None:
            try:
                return self.runtime.exit_status(self.name, since)
            except ContainersError:
                return None  # the engine may be gone too

        if monitor := pipe.leave_client(ask_status):
            self.reaper.watch(monitor)

    def answers(self, timeout: float) -> bool:
        """Ask the guest, which was told nothing yet, whether it lives.

        Args:
            timeout: the seconds for its answer.
        """
        return self._ask(timeout)

    def _ask(self, timeout: float, *, compiled: bool = False) -> bool:
        """Send ``prepare``. Return whether it was answered.

        Args:
            timeout: the seconds for the answer.
            compiled: whether to keep the byte code.
        """
        pipe = self.pipe
        if pipe is None or pipe.ended() is not None:
            return False
        try:
            pipe.send_message(op="prepare", compiled=compiled)
            for item in pipe.items(timeout):
                if isinstance(item, Message):
                    if compiled:
                        self._byte_code.keep(item.content.get("code"))
                    return item.content.get("op") == "prepared"
                if isinstance(item, Closed | Event):  # its worker may have died, and another begun
                    return False
        except (SandboxLostError, TimeoutError):
            pass
        return False

    @property
    def host_route(self) -> HostRoute | None:
        """How it reaches this host; ``None`` if it does not."""
        if isinstance(self.network, InternalNetwork):
            return self.network.route
        return None if self.network == "none" else self.runtime.host_route()

    def hang_up(self) -> None:
        """Make whoever waits for it return at once, with an error."""
        for pipe in (self._opening, self.pipe):
            if pipe is not None:
                pipe.hang_up()

    def end_guest(self) -> None:
        """Have its guest end, and wait until nothing in it runs. The engine removes it after that.

        :meth:`end` waits for the engine, too, which takes a tenth of a second or more.
        """
        pipe = self.pipe
        if pipe is None:
            return
        pipe.hang_up()
        with contextlib.suppress(TimeoutError):
            for item in pipe.items(_CLOSE_TIMEOUT):
                if isinstance(item, Closed):
                    return
                if isinstance(item, Event) and item.content.get("event") == "ended":
                    return

    def is_reading_here(self) -> bool:
        """Whether this thread is one that :meth:`end` waits for."""
        pipe = self.pipe or self._opening
        return pipe is not None and pipe.is_reading_here()

    def end(self) -> None:
        """End it. May be called again."""
        pipe = self.pipe
        if pipe is None:
            return  # the launch has failed, and has removed its container itself
        try:
            pipe.close(_CLOSE_TIMEOUT)
        finally:
            ended = pipe.closed
            if ended is None or ended.exit_code != 0:
                # It did not end by itself, so --rm may not have removed it.
                self.abandon()

    def abandon(self) -> None:
        """Have the engine remove the container."""
        try:
            self.runtime.remove(self.name)
        except Exception as error:
            # An engine that is gone has nothing to remove; closing must go on in any case.
            logger.warning("%s: %s", self.name, error)

    def remove(self) -> None:
        """Remove all that it has used on this host, once it has ended. May be called again.

        Raises:
            WorkspaceError: the workspace could not be removed.
        """
        self._undo.close()

    def _workspace_user(self) -> Ids:
        """Return who must own the directory of this host."""
        if self._options.workspace in ("memory", "volume") or self.runtime.shares_files is False:
            return os.getuid(), os.getgid()
        return self.runtime.workspace_user(_ids(self._options.user))

    def _open_home(self, remove: tuple[str, ...], *, new: bool) -> tuple[Home, Reaper]:
        """Open the home, and start the reaper before there is anything that a crash could leave.

        Args:
            remove: the command line that removes the container and its network.
            new: whether the session must not exist yet.
        """
        session = self._options.session
        # Register this first: a Ctrl-C between two statements must leave neither of them.
        self._undo.callback(self._close_home)
        durable = self._options.reaches_disk
        home = self._home = (
            KeptHome(self.name, session, new=new, durable=durable) if session else Home(self.name)
        )
        reaper = self._reaper = Reaper(
            self.name, home.passing_workspace, remove, also=home.passing_snapshots, lock=home.lock
        )
        return home, reaper

    def _close_home(self) -> None:
        if self._home is None:
            return
        try:
            self._home.close()
        finally:
            if self._reaper is not None:
                self._reaper.dismiss()
            self._home.release()


def _ids(user: str | None) -> tuple[int, int] | None:
    """Return the UID and GID of ``"UID:GID"``."""
    if user is None:
        return None
    uid, _, gid = user.partition(":")
    return int(uid), int(gid)
