"""From an image to a guest that has said hello."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlm_containers.container import bundle as guest
from rlm_containers.container.limits import Limits
from rlm_containers.errors import (
    ContainersError,
    ContainerStartError,
    GuestPythonError,
    ImageNotFoundError,
    SandboxStartError,
    format_size,
)
from rlm_containers.guest import wire
from rlm_containers.interpreter import KILLED, Closed, Event, Pipe, printable
from rlm_containers.options import SandboxOptions
from rlm_containers.state import Workspace
from runtimes import ContainerSpec, GpuRequest, InternalNetwork, Mount, Runtime

logger = logging.getLogger("rlm_containers")

#: The name by which code in a container reaches the proxy on this host.
HOST_ALIAS = "host.docker.internal"

#: Seconds for the client of a failed start to end by itself.
_PATIENCE = 10.0

#: How often a start is tried again that failed for a reason of the engine's own.
_RETRIES = 2

#: Images have one of these, most of them both.
_INTERPRETERS = ("python3", "python")

# How docker 20-28 and podman 3-5, with runc and crun, say that the program is not in the image; and
# how their inits do, tini and catatonit, which start before it is looked for.
_NO_PROGRAM = re.compile(
    r"executable file .*not found|no such file or directory: OCI runtime|"
    r"exec: \"python3?\"|stat python3?: no such file|exec python3? failed|failed to exec pid1",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Starts one container, as often as it takes to find the image and its Python.

    Attributes:
        runtime: the engine.
        options: what the sandbox is to be.
        limits: how much of everything it may use.
        network: what it can reach.
        workspace: the directory for its ``/workspace``.
        name: the container's name.
        labels: the container's labels.
        fetch: gets the image into the engine's store.
        on_call: see :class:`Pipe`.
        watch: told the process id of every client that is started.
    """

    runtime: Runtime
    options: SandboxOptions
    limits: Limits
    network: Literal["bridge", "none"] | InternalNetwork
    workspace: Workspace
    name: str
    labels: Mapping[str, str]
    fetch: Callable[[str], None]
    on_call: Callable[[int, bytes], None]
    watch: Callable[[int], None] = lambda client: None

    def run(self) -> tuple[Pipe, str]:
        """Start the container and wait for its guest's greeting.

        Returns:
            The pipe to it, and the version of its Python.

        Raises:
            ImageNotFoundError: the image is not here and cannot be pulled.
            GuestPythonError: the image has no Python, or too old a one.
            ContainerStartError: the engine refused.
            SandboxStartError: the guest did not come up.
        """
        bundle = guest.guest_bundle()
        pulled = False
        retries = _RETRIES
        interpreters = list(_INTERPRETERS)
        while True:
            spec = self._spec(interpreters[0], bundle)
            started = time.time()
            process = self.runtime.open(spec)
            self.watch(process.pid)
            pipe = Pipe(process, self.on_call)
            try:
                greeting = self._greeting(pipe)
            except BaseException:
                self._abandon(pipe)
                raise
            if isinstance(greeting, str):
                return pipe, greeting
            pipe.close(_PATIENCE)
            if _NO_PROGRAM.search(greeting.stderr) and len(interpreters) > 1:
                interpreters.pop(0)
                continue
            error = self._start_error(spec, greeting, bundle, started)
            if isinstance(error, ImageNotFoundError) and not pulled:
                # Only now: asking first would cost every start a call of the engine.
                pulled = True
                if not self.runtime.image_exists(self.options.image):
                    self.fetch(self.options.image)
                continue
            if isinstance(error, ContainerStartError) and error.transient and retries:
                retries -= 1
                logger.info("%s: trying again: %s", self.name, error.what)
                self.runtime.remove(self.name)  # what there may be of it has the name
                continue
            raise error

    def _greeting(self, pipe: Pipe) -> str | Closed:
        """The version of the guest's Python, or how the container ended instead."""
        deadline = time.monotonic() + self.options.start_timeout
        while True:
            try:
                item = pipe.receive(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                self._remove()  # at once: its program may be one that reads nothing
                raise SandboxStartError(
                    f"The container was not up within {self.options.start_timeout:g} s.",
                    remedy="Raise start_timeout, or see what keeps the engine busy.",
                    container=self.name,
                ) from None
            if isinstance(item, Closed):
                return item
            if isinstance(item, Event) and item.content.get("event") == "hello":
                return printable(item.content.get("python"), 20)

    def _abandon(self, pipe: Pipe) -> None:
        """End a start that nobody waits for any more."""
        pipe.close(_PATIENCE)
        ended = pipe.closed
        if ended is None or ended.exit_code != 0:
            # A slow engine may have made the container after it was removed.
            self._remove()

    def _remove(self) -> None:
        try:
            self.runtime.remove(self.name)
        except Exception as error:
            # An engine says many things of a container that it is still making; what the start
            # failed for is more important.
            logger.info("%s: %s", self.name, error)

    def _spec(self, interpreter: str, bundle: guest.Bundle) -> ContainerSpec:
        options, limits = self.options, self.limits
        strict = options.isolation == "strict"
        assert options.gpus is None or isinstance(options.gpus, GpuRequest)
        return ContainerSpec(
            image=options.image,
            command=(interpreter, "-c", bundle.boot),
            name=self.name,
            labels=self.labels,
            mounts=(
                Mount(source=bundle.path, target=wire.BUNDLE, shared=True),
                Mount(source=self.workspace.path, target=wire.WORKSPACE, read_only=False),
                *options.mounts,
            ),
            # A home that exists and is writable, whoever the user is in the image.
            env={"HOME": wire.WORKSPACE},
            workdir=wire.WORKSPACE,
            user=options.user,
            network=self.network,
            host_alias=HOST_ALIAS,
            read_only=strict,
            tmpfs={"/tmp": limits.tmp} if limits.tmp else {},  # noqa: S108
            memory=limits.memory,
            cpus=limits.cpus,
            pids=limits.pids,
            disk=limits.disk,
            gpus=options.gpus,
            directory=self.directory,
            extra_args=options.run_args,
        )

    @property
    def directory(self) -> Path | None:
        """Where the engine's client runs: beside what it leaves there, if anything."""
        # Unless the user's own arguments have relative paths in them.
        return None if _has_relative_path(self.options.run_args) else self.workspace.path

    def memory_loss(self, since: float) -> str | None:
        """How the whole container was killed for its memory.

        Args:
            since: seconds of the epoch; what was before is not meant.

        Returns:
            A clause; empty if it was not, and ``None`` if nobody knows.
        """
        try:
            # A second for an engine that stamps with a clock of its own.
            lost = self.runtime.ran_out_of_memory(self.name, since - 1, self.directory)
        except ContainersError:
            return None  # the engine may be gone as well
        if not lost:
            return None if lost is None else ""
        limit = self.limits.memory
        may = f": it may use no more than {format_size(limit)} (memory=…)" if limit else ""
        return f"it was killed for its memory{may}"

    def _start_error(
        self, spec: ContainerSpec, closed: Closed, bundle: guest.Bundle, started: float
    ) -> Exception:
        needed = ".".join(str(part) for part in bundle.python)
        if closed.exit_code == guest.TOO_OLD:
            return GuestPythonError(
                f"The Python in the image {spec.image!r} is too old: {_last_line(closed.stderr)}.",
                remedy=f"Use an image with Python {needed} or later.",
                container=self.name,
            )
        if _NO_PROGRAM.search(closed.stderr):
            return GuestPythonError(
                f"The image {spec.image!r} has neither python3 nor python on its PATH.",
                remedy=f"Use an image with Python {needed} or later, such as python:3.11-slim.",
                container=self.name,
            )
        if "No module named 'rlm_guest'" in closed.stderr:
            return SandboxStartError(
                f"The container does not see {bundle.path}, which is mounted into it.",
                remedy="The engine must be able to mount this user's cache directory: a remote "
                "engine cannot, and a virtual machine only shares some directories. "
                "XDG_CACHE_HOME moves it.",
                container=self.name,
            )
        if closed.reason:
            return SandboxStartError(
                f"The guest did not come up: {closed.reason}.",
                remedy=f"Does `{spec.image}` print something when Python starts?",
                container=self.name,
            )
        if closed.exit_code == KILLED and (loss := self.memory_loss(started)):
            return SandboxStartError(
                f"The guest did not come up; {loss}.",
                remedy="Raise memory=….",
                container=self.name,
            )
        error = self.runtime.start_error(spec, closed.exit_code, closed.stderr)
        assert isinstance(error, ContainersError)
        return error


def _has_relative_path(arguments: Sequence[str]) -> bool:
    words = [word for argument in arguments for word in re.split("[=:,]", argument)]
    return any(
        word and not word.startswith("/") and os.path.lexists(word) for word in words
    ) or any(argument.startswith(("--cidfile", "--pidfile")) for argument in arguments)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].partition(": ")[2] or lines[-1] if lines else "it said nothing"
