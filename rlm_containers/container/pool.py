"""Containers that wait for sandboxes, which then start in milliseconds.

Each is used once. So nothing of one sandbox reaches another: what waits has been told nothing, and
what was told something ends.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator

from rlm_containers.container.container import Container, new_name
from rlm_containers.container.image import SandboxImage
from rlm_containers.errors import (
    SandboxClosedError,
    SandboxError,
    SandboxForkedError,
    message_of,
)
from rlm_containers.interpreter import start_thread
from rlm_containers.options import SandboxOptions
from rlm_containers.state import workspaces_directory
from runtimes import get_runtime
from runtimes.forks import ModuleLock
from runtimes.text import get_logger
from runtimes.timelimit import TimeLimit

logger = get_logger("rlm_containers")

#: Seconds without a sandbox after which the containers that wait are ended.
IDLE_TIMEOUT = 300.0

#: Containers of one pool that are started at once, besides those of sandboxes that wait for one.
_STARTING = max(2, min(8, (os.cpu_count() or 1) // 2))

#: Seconds after a sandbox has started, for its first cell. To start a container takes a processor.
_PAUSE = 0.05

#: Seconds for a waiting container to answer. One that does not is replaced.
_ANSWER_TIMEOUT = 2.0

#: Seconds for threads of a pool that is closed to end. One may be building an image.
_CLOSE_TIMEOUT = 15.0

#: Pools of one process that are shared by key. Past that, the one unused for longest is closed.
_SHARED_POOLS = 8

#: The options that a waiting container is told, or that only concern the host. All others are
#: arguments of its `run` or go into its image.
TOLD_LATER = frozenset(
    (
        "cell_timeout",
        "durability",
        "env",
        "heirs",
        "lm_timeout",
        "max_lm_calls",
        "max_output",
        "max_session_lm_calls",
        "pool",
        "profile",
        "session",
        "setup_code",
        "start_timeout",
    )
)


class ContainerPool:
    """Containers of one kind that wait. Its methods may be called from any thread.

    Args:
        options: those of the sandboxes, but for :data:`TOLD_LATER`.
        size: how many wait.
        max_size: the most that there are at once, waiting or in use; ``None`` for no limit.
        idle_timeout: seconds without a sandbox after which those that wait are ended, until the
            next sandbox is wanted; ``None`` to keep them.

    Attributes:
        size: as it was given. It may be raised.
        options: as they were given.

    Raises:
        OptionError: one of the options that add to the image is wrong.
    """

    def __init__(
        self,
        options: SandboxOptions,
        size: int,
        *,
        max_size: int | None = None,
        idle_timeout: float | None = IDLE_TIMEOUT,
    ) -> None:
        self.options = options
        self.size = size
        self._image = SandboxImage(options)
        self._max_size = math.inf if max_size is None else max_size
        self._idle_timeout = idle_timeout
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._emptying = threading.RLock()  # held by the thread that ends what waits
        self._waiting: deque[Container] = deque()
        self._starting: set[Container] = set()
        self._busy: set[Container] = set()  # those that are being removed
        # The sandboxes that were counted, and those of them that have not taken a container yet.
        # Sets, and not numbers: who leaves after a Ctrl-C need not know whether it was counted.
        self._users: set[Hashable] = set()
        self._entered: set[Hashable] = set()
        self._queued = 0  # callers of enter() that wait for room
        self._direct = 0  # sandboxes that found none, and start one themselves
        self._paused = False  # no more are started until the next sandbox is wanted
        self._closed = False
        self._used_at = time.monotonic()
        self._keeper: threading.Thread | None = None
        _note(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._waiting)} of {self.size} wait"
        return f"<{type(self).__name__} of {self._image.name}, {state}>"

    # For sandboxes

    def enter(
        self,
        user: Hashable,
        timeout: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Count a sandbox from now on, as soon as there is room for it.

        Args:
            user: stands for it.
            timeout: seconds to wait; ``None`` for no limit.
            cancelled: whether nobody wants it any more. Call :meth:`wake` when that changes.

        Raises:
            SandboxError: there was no room in time.
            SandboxClosedError: the pool was closed.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._has_room():
                self.check()
                if cancelled():
                    raise SandboxError("Nobody waits for this sandbox any more.")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SandboxError(
                        f"All {self._max_size} sandboxes of the pool were in use for "
                        f"{timeout:g} s.",
                        remedy="Close sandboxes that are done, or raise max_size or the timeout.",
                    )
                self._queued += 1
                try:
                    self._changed.wait(None if left == math.inf else left)
                finally:
                    self._queued -= 1
            self._users.add(user)
            self._entered.add(user)

    def _has_room(self) -> bool:
        """Whether one more sandbox may take a container, or start one."""
        unclaimed = len(self._waiting) - len(self._entered)
        others = len(self._starting) + max(0, unclaimed)
        return unclaimed > 0 or len(self._users) + others < self._max_size

    def leave(self, user: Hashable, container: Container | None) -> None:
        """Count a sandbox no more, once its container is gone. It need not have been counted.

        Args:
            user: stands for it.
            container: its container, whose guest has ended. It is removed in the background: the
                engine takes its time, and nobody need wait for that. ``None`` if there is none.
        """

        def left() -> None:
            self._users.discard(user)
            self._entered.discard(user)
            self._start_fillers()

        if container is not None:
            self._remove(container, left)
            return
        with self._changed:
            left()
            self._changed.notify_all()

    def wake(self) -> None:
        """Let :meth:`enter` look again whether it was cancelled."""
        with self._changed:
            self._changed.notify_all()

    def take(self, user: Hashable, adopt: Callable[[Container | None], None]) -> bool:
        """Hand a container over that waits and lives, to a sandbox that was counted.

        Args:
            user: stands for it.
            adopt: called with the container, which is the caller's from then on; with ``None`` if
                it turns out to be dead.

        Returns:
            Whether there was one. If not, the caller starts one, within :meth:`starting`.
        """
        with self._changed:
            self._entered.discard(user)
        while True:
            with self._changed:
                self._used_at = time.monotonic()
                if self._closed or not self._waiting:
                    return False
                container = self._waiting[0]
                # In this order: a Ctrl-C between the two leaves a container in two places, not in
                # none. The pool will find that it is dead.
                adopt(container)
                self._waiting.popleft()
            if container.answers(_ANSWER_TIMEOUT):
                return True
            adopt(None)
            logger.info("%s: it died while it waited, and is replaced", container.name)
            self._remove(container, dead=True)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Let a caller start a container without others being started beside it."""
        with self._changed:
            self._direct += 1
        try:
            yield
        finally:
            with self._changed:
                self._direct -= 1

    def refill(self, pause: float = _PAUSE) -> None:
        """Start as many containers as there shall wait, in the background.

        Args:
            pause: seconds to wait before that.
        """
        with self._changed:
            self._used_at = time.monotonic()
            self._paused = False
            self._start_fillers(pause)

    # Filling

    def _start_fillers(self, pause: float = 0.0) -> None:
        """Start a thread for each container that may be started now."""
        while (container := self._next()) is not None:
            try:
                start_thread(self._fill, f"rlm-pool-{container.name}", container, pause)
            except SandboxError as error:
                self._starting.discard(container)
                logger.warning("%s", error)
                return

    def _next(self) -> Container | None:
        """Return a container to be started now, and count it; ``None`` if there is enough."""
        there = len(self._waiting) + len(self._starting)
        if (
            self._closed
            or self._paused
            or self._direct
            or self._queued
            or there >= self.size
            or there - len(self._entered) + len(self._users) >= self._max_size
            or len(self._starting) >= _STARTING
        ):
            return None
        container = Container(new_name(), self.options, self._image)
        self._starting.add(container)
        return container

    def _fill(self, first: Container, pause: float) -> None:
        """Start containers, one after the other, until there are enough."""
        time.sleep(pause)
        container: Container | None = first
        while container is not None:
            ready = self._start(container)
            with self._changed:
                self._starting.discard(container)
                if ready and not self._closed:
                    self._waiting.append(container)
                    ready = False
                    self._keep()
                self._changed.notify_all()
                following = self._next()
            if ready:  # the pool was closed meanwhile
                self._discard(container)
            container = following

    def _start(self, container: Container) -> bool:
        """Start a container. Return whether it is ready."""
        limit = TimeLimit(
            self.options.start_timeout,
            "the start",
            option="start_timeout",
            container=container.name,
        )
        try:
            self.check()
            with limit.applied():
                container.start(limit, check=self.check)
                container.prepare(limit)
                container.leave_client()
            return True
        except BaseException as error:
            self._discard(container)
            with self._changed:
                # The next sandbox finds out whether it works by then, and gets the error if not.
                self._paused = True
                closed = self._closed
            if not closed:
                logger.warning("no container was started in advance: %s", message_of(error))
            return False

    def _remove(
        self,
        container: Container,
        then: Callable[[], None] = lambda: None,
        *,
        dead: bool = False,
    ) -> None:
        """Remove a container in the background, or now if the pool is closed.

        Args:
            container: the container.
            then: called after that, with the lock held.
            dead: whether its guest does not answer.
        """

        def remove() -> None:
            if dead and container.pipe is not None and container.pipe.ended() is None:
                container.hang_up()
                container.abandon()  # it may be stopped, and not end by itself
            self._discard(container)
            with self._changed:
                self._busy.discard(container)
                then()
                self._changed.notify_all()

        with self._changed:
            self._busy.add(container)
        if self._closed:  # at the end of the process, a thread would be cut off
            remove()
            return
        try:
            start_thread(remove, f"rlm-pool-{container.name}", container=container.name)
        except SandboxError:
            remove()

    def _discard(self, container: Container) -> None:
        for undo in (container.end, container.remove):
            try:
                undo()
            except Exception as error:
                logger.warning("%s: %s", container.name, message_of(error))

    # Emptying

    def _keep(self) -> None:
        """See to it that what waits is ended once nobody has wanted any for a while."""
        if self._idle_timeout is not None and self._keeper is None:
            with contextlib.suppress(SandboxError):  # then the next one does
                self._keeper = start_thread(self._end_idle, "rlm-pool-idle", self._idle_timeout)

    def _end_idle(self, timeout: float) -> None:
        while True:
            with self._changed:
                if self._closed or not (self._waiting or self._starting):
                    self._keeper = None
                    return
                left = self._used_at + timeout - time.monotonic()
                if left > 0 or not self._waiting:
                    self._changed.wait(left if left > 0 else None)
                    continue
                self._paused = True
                container = self._waiting.popleft()
                self._busy.add(container)
            self._discard(container)
            with self._changed:
                self._busy.discard(container)
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many containers wait."""
        return len(self._waiting)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def idle_since(self) -> float:
        """When a sandbox was wanted last, in seconds of ``time.monotonic()``."""
        return self._used_at

    def close(self) -> None:
        """End what waits. May be called again. Sandboxes in use are left alone."""
        if self._process != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for container in (*self._waiting, *self._starting):
                container.hang_up()  # all at once: each takes a moment to end
            deadline = time.monotonic() + _CLOSE_TIMEOUT
            while (self._starting or self._busy) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        with self._emptying:
            for container in tuple(self._waiting):
                self._discard(container)
                # Now, so that after a Ctrl-C the next call ends it. A signal handler may have.
                with contextlib.suppress(ValueError):
                    self._waiting.remove(container)
        _open.discard(self)

    def check(self) -> None:
        """Check that this process may use it.

        Raises:
            SandboxForkedError: it belongs to the process that this one was forked from.
            SandboxClosedError: it was closed.
        """
        if self._process != os.getpid():
            raise SandboxForkedError(
                f"The pool belongs to the process {self._process}, and this one, {os.getpid()}, "
                "was forked from it.",
                remedy="Make a pool in each process.",
            )
        if self._closed:
            raise SandboxClosedError("The pool was closed.", remedy="Make a new SandboxPool.")


#: Those that are open, and whether they are closed at the end of this process.
_open: set[ContainerPool] = set()
_registered = False


def _note(pool: ContainerPool) -> None:
    """Close the pool at the end of this process, before the sandboxes: they start no more then."""
    global _registered
    _open.add(pool)
    if not _registered:
        atexit.register(close_pools)
        _registered = True


def close_pools() -> None:
    """Close all pools of this process."""
    for pool in list(_open):
        pool.close()


_shared: dict[Hashable, ContainerPool] = {}
_shared_lock = ModuleLock()


def shared_pool(options: SandboxOptions) -> ContainerPool:
    """Return the pool of this process for sandboxes with these options; make it if need be.

    The largest ``pool`` of all that share it is its size. A process has at most eight such pools;
    past that, the one that was unused for longest is closed.

    Args:
        options: the options; ``pool`` is a number.

    Raises:
        OptionError: one of the options that add to the image is wrong.
        ContainersError: no engine answers.
    """
    size = options.pool or 0
    names = (field.name for field in dataclasses.fields(options))
    key = (
        os.getpid(),
        get_runtime(options.runtime),
        workspaces_directory(),
        SandboxImage(options).recipe,
        *(getattr(options, name) for name in names if name not in TOLD_LATER),
    )
    with _shared_lock:
        pool = _shared.get(key)
        if pool is None or pool.is_closed:
            for gone in [other for other, its in _shared.items() if its.is_closed]:
                del _shared[gone]
            if len(_shared) >= _SHARED_POOLS:
                unused = min(_shared, key=lambda other: _shared[other].idle_since)
                start_thread(_shared.pop(unused).close, "rlm-pool-close")
            pool = _shared[key] = ContainerPool(options, size)
        pool.size = max(pool.size, size)
        return pool
