"""A pool of containers that wait for sandboxes."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Self, Unpack

from rlm_containers.container import IDLE_TIMEOUT, TOLD_LATER, ContainerPool
from rlm_containers.errors import OptionError
from rlm_containers.lm import LMBroker, LMCallable
from rlm_containers.options import (
    DEFAULT_IMAGE,
    OptionArguments,
    configured_options,
    is_count,
    is_seconds,
    unknown_option,
    wrong_value,
)
from rlm_containers.sandbox.awaiting import call_in_thread, in_thread
from rlm_containers.sandbox.sandbox import Sandbox
from rlm_containers.sandbox.tools import ToolFunction

#: The options that :meth:`SandboxPool.acquire` may change.
_CHANGEABLE = TOLD_LATER - {"pool", "profile", "session"}


class SandboxPool:
    """Containers that wait, so that a sandbox starts in some milliseconds.

    They are started in the background: the first ones by :meth:`fill` or by the first sandbox. Each
    is used by one sandbox, and removed with it. A container that has died while it waited is
    replaced. If none waits, a sandbox starts as it does without a pool.

    >>> with SandboxPool(size=4) as pool:  # doctest: +SKIP
    ...     with pool.sandbox() as box:
    ...         print(box.execute("print(6 * 7)").stdout)
    42

    Args:
        image: the image; any with Python 3.9 or later.
        size: how many containers wait.
        max_size: the most that there are at once, waiting or in use; ``None`` for no limit.
        idle_timeout: seconds without a new sandbox after which the waiting containers are ended;
            ``None`` to keep them. The next sandbox has them made anew.
        setup_code: a cell that each sandbox runs first, see :class:`Sandbox`.
        options: see :class:`~rlm_containers.SandboxOptions`. They are those of all sandboxes of the
            pool. ``session`` cannot be one of them: what waits has a workspace already.

    Attributes:
        options: the options, those from the configuration included.

    Raises:
        OptionError: an argument is unknown or wrong.
    """

    def __init__(
        self,
        image: str = DEFAULT_IMAGE,
        *,
        size: int = 4,
        max_size: int | None = None,
        idle_timeout: float | None = IDLE_TIMEOUT,
        setup_code: str | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        _check("size", size, "a number of containers, at least 1", is_count(size) and size)
        if max_size is not None:
            least = f"a number of containers, at least size={size}, or None"
            _check("max_size", max_size, least, is_count(max_size, size))
        if idle_timeout is not None:
            _check("idle_timeout", idle_timeout, "a number of seconds", is_seconds(idle_timeout))
        if "pool" in options:
            raise OptionError("A SandboxPool has no pool.", remedy="size says how many wait.")
        # With a pool, so that what contradicts one is found.
        arguments = {"image": image, "setup_code": setup_code, **options, "pool": size}
        configured = configured_options(arguments, also=("size", "max_size", "idle_timeout"))
        self.options = dataclasses.replace(configured, pool=None)
        self._pool = ContainerPool(self.options, size, max_size=max_size, idle_timeout=idle_timeout)

    def __repr__(self) -> str:
        return f"<SandboxPool {self._pool!r}>"

    @property
    def waiting(self) -> int:
        """How many containers wait now."""
        return self._pool.waiting

    def fill(self) -> Self:
        """Start the containers that shall wait, in the background. Return at once.

        Raises:
            SandboxClosedError: the pool was closed.
        """
        self._pool.check()
        self._pool.refill(pause=0)
        return self

    def acquire(
        self,
        timeout: float | None = None,
        *,
        lm: LMCallable | LMBroker | None = None,
        tools: Mapping[str, ToolFunction] | None = None,
        scaffold: bool = True,
        **options: Any,
    ) -> Sandbox:
        """Return a sandbox that runs. The caller closes it, for instance by ``with``.

        Args:
            timeout: seconds to wait while ``max_size`` sandboxes are in use; ``None`` for no limit.
            lm: see :class:`~rlm_containers.Sandbox`.
            tools: likewise.
            scaffold: likewise.
            options: options that differ from those of the pool: ``env``, ``setup_code``, the
                timeouts, the limits on calls, ``max_output``, ``durability`` and ``heirs``.

        Raises:
            OptionError: an argument is wrong, or a container that waits cannot take it.
            SandboxError: all sandboxes were in use until the timeout.
            SandboxClosedError: the pool was closed.
            ContainersError: as for :meth:`Sandbox.start`.
        """
        return self._acquire(
            timeout, lambda: False, lm=lm, tools=tools, scaffold=scaffold, **options
        )

    def _acquire(
        self,
        timeout: float | None,
        cancelled: Callable[[], bool],
        *,
        lm: LMCallable | LMBroker | None,
        tools: Mapping[str, ToolFunction] | None,
        scaffold: bool,
        **options: Any,
    ) -> Sandbox:
        self._pool.check()
        for name in options:
            if name not in {field.name for field in dataclasses.fields(self.options)}:
                raise unknown_option(name, {*_CHANGEABLE, "lm", "tools", "scaffold", "timeout"})
            if name not in _CHANGEABLE:
                raise OptionError(
                    f"{name} cannot be given to a sandbox of a pool: its container waits already.",
                    remedy=f"Give it to the SandboxPool, or use Sandbox({name}=…) itself. "
                    f"A sandbox can have its own: {', '.join(sorted(_CHANGEABLE))}.",
                )
        own = dataclasses.replace(self.options, **options)
        box = Sandbox._with(
            own,
            lm=lm,
            tools=tools or {},
            scaffold=scaffold,
            setup_code=own.setup_code,
            pool=self._pool,
        )
        try:
            box._life.enter(timeout, cancelled)
            return box.start()
        except BaseException:
            box.close()  # a Ctrl-C may have come before the start, which would do so
            raise

    async def aacquire(self, timeout: float | None = None, **arguments: Any) -> Sandbox:
        """As :meth:`acquire`. If it is cancelled, no sandbox is left."""
        cancelled = threading.Event()

        def stop() -> None:
            cancelled.set()
            self._pool.wake()

        arguments = {"lm": None, "tools": None, "scaffold": True, **arguments}
        return await call_in_thread(
            lambda: self._acquire(timeout, cancelled.is_set, **arguments),
            stop,
            discard=lambda box: box.close(),
        )

    @contextlib.contextmanager
    def sandbox(self, timeout: float | None = None, **arguments: Any) -> Iterator[Sandbox]:
        """As :meth:`acquire`, for ``with``: the sandbox is closed at the end of the block."""
        with self.acquire(timeout, **arguments) as box:
            yield box

    @contextlib.asynccontextmanager
    async def asandbox(
        self, timeout: float | None = None, **arguments: Any
    ) -> AsyncIterator[Sandbox]:
        """As :meth:`aacquire`, for ``async with``."""
        async with await self.aacquire(timeout, **arguments) as box:
            yield box

    def close(self) -> None:
        """End the containers that wait. May be called again. Sandboxes in use are left alone."""
        self._pool.close()

    aclose = in_thread(close)

    def __enter__(self) -> Self:
        return self.fill()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.fill()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _check(name: str, value: object, expected: str, good: object) -> None:
    if not good:
        raise wrong_value(name, expected, value)
