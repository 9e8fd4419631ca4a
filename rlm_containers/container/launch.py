"""Starts a sandbox's container, and waits for its guest's hello."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlm_containers import images
from rlm_containers.container.bundle import TOO_OLD, Bundle, guest_bundle
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
from rlm_containers.state import Owner, Workspace
from runtimes import ContainerSpec, GpuRequest, InternalNetwork, Mount, Runtime

logger = logging.getLogger("rlm_containers")

#: The name by which code in a container reaches the proxy on this host.
HOST_ALIAS = "host.docker.internal"

#: Seconds for the client of a failed start to end by itself.
_END_TIMEOUT = 10.0

#: How often to start again after an error that the engine itself calls passing.
_RETRIES = 2

#: The names of Python on an image's PATH. Most images have both.
_INTERPRETERS = ("python3", "python")

# What docker 20-28 and podman 3-5, with runc or crun, say when the image lacks the program. Their
# inits, tini and catatonit, start before the program is looked for, and say it in their own words.
_NO_PROGRAM = re.compile(
    r"executable file .*not found|no such file or directory: OCI runtime|"
    r"exec: \"python3?\"|stat python3?: no such file|exec python3? failed|failed to exec pid1",
    re.IGNORECASE,
)


class SandboxImage:
    """The image of one sandbox: the one in its options, or one that is built on top of it.

    Args:
        options: the sandbox's. Those that add to the image are checked as far as possible without
            an engine.

    Raises:
        OptionError: one of the options that add to the image is wrong.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self._name = options.image
        self._recipe: images.Recipe | None = None
        if (
            options.packages
            or options.requirements
            or options.system_packages
            or options.dockerfile
        ):
            self._recipe = images.recipe_of(options)

    def get(self, runtime: Runtime, *, missing: bool = False) -> str:
        """Build the image if the options add something to it.

        Args:
            runtime: the engine.
            missing: whether the engine has said that it lacks the image. Then look for it again,
                and pull or build it. Otherwise the engine is asked only about derived
                images that this process has not seen yet.

        Returns:
            The name of the image to start.

        Raises:
            ImageNotFoundError: the image, or its base image, is neither here nor in a registry.
            ImageBuildError: the build failed.
            OptionError: the host's settings for pip cannot be used in a build.
        """
        if self._recipe is None:
            if missing:
                images.ImageCache().fetch(runtime, self._name)
            return self._name
        return images.derive_image(
            runtime,
            self._name,
            self._recipe,
            container_labels=Owner.current().labels(),
            again=missing,
        )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Starts one container, with as many attempts as finding the image and its Python takes.

    Attributes:
        runtime: the engine.
        image: the sandbox's image.
        options: the sandbox's options.
        limits: how much the container may use.
        network: what the container can reach.
        workspace: the directory for its ``/workspace``.
        name: the container's name.
        labels: the container's labels.
        on_call: called with each request of the guest, see :class:`Pipe`.
        watch: called with the process id of every client of the engine that is started.
    """

    runtime: Runtime
    image: SandboxImage
    options: SandboxOptions
    limits: Limits
    network: Literal["bridge", "none"] | InternalNetwork
    workspace: Workspace
    name: str
    labels: Mapping[str, str]
    on_call: Callable[[int, bytes], None]
    watch: Callable[[int], None] = lambda client: None

    def run(self) -> tuple[Pipe, str]:
        """Get the image, start the container, and wait for its guest's greeting.

        Returns:
            The pipe to the guest, and the version of its Python.

        Raises:
            ImageNotFoundError: the image is not here and cannot be pulled.
            ImageBuildError: what the options add to the image cannot be built.
            GuestPythonError: the image has no Python, or too old a one.
            ContainerStartError: the engine refused.
            SandboxStartError: the guest did not come up.
        """
        bundle = guest_bundle()
        image = self.image.get(self.runtime)
        searched = False
        retries = _RETRIES
        interpreters = list(_INTERPRETERS)
        while True:
            spec = self._spec(image, interpreters[0], bundle)
            started = time.time()
            process = self.runtime.open(spec)
            self.watch(process.pid)
            pipe = Pipe(process, self.on_call)
            try:
                greeting = self._greeting(pipe)
                if isinstance(greeting, str):
                    images.note_use(self.runtime, image)  # may wait for a lock
                    return pipe, greeting
            except BaseException:
                self._abandon(pipe)
                raise
            pipe.close(_END_TIMEOUT)
            if _NO_PROGRAM.search(greeting.stderr) and len(interpreters) > 1:
                interpreters.pop(0)
                continue
            error = self._start_error(spec, greeting, bundle, started)
            if isinstance(error, ImageNotFoundError) and not searched:
                # Asking before the first try would cost every start a call of the engine.
                searched = True
                if not self.runtime.image_exists(image):
                    image = self.image.get(self.runtime, missing=True)
                continue
            if isinstance(error, ContainerStartError) and error.transient and retries:
                retries -= 1
                logger.info("%s: trying again: %s", self.name, error.what)
                self.runtime.remove(self.name)  # a half-made container has the name
                continue
            raise error

    def _greeting(self, pipe: Pipe) -> str | Closed:
        """Wait for the version of the guest's Python, or for the end of the container."""
        deadline = time.monotonic() + self.options.start_timeout
        while True:
            try:
                item = pipe.receive(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                self._remove()  # its program may never read that the pipe is closed
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
        """End a start that was given up."""
        pipe.close(_END_TIMEOUT)
        ended = pipe.closed
        if ended is None or ended.exit_code != 0:
            # A slow engine may have made the container after it was told to remove it.
            self._remove()

    def _remove(self) -> None:
        try:
            self.runtime.remove(self.name)
        except Exception as error:
            # The caller raises why the start failed. An engine that is still making the container
            # complains about this call too, which is less important.
            logger.info("%s: %s", self.name, error)

    def _spec(self, image: str, interpreter: str, bundle: Bundle) -> ContainerSpec:
        options, limits = self.options, self.limits
        strict = options.isolation == "strict"
        assert options.gpus is None or isinstance(options.gpus, GpuRequest)
        return ContainerSpec(
            image=image,
            command=(interpreter, "-c", bundle.boot),
            name=self.name,
            labels=self.labels,
            mounts=(
                Mount(source=bundle.path, target=wire.BUNDLE, shared=True),
                Mount(source=self.workspace.path, target=wire.WORKSPACE, read_only=False),
                *options.mounts,
            ),
            # A home that exists and can be written to, whoever the image's user is.
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
        """The working directory of the engine's client: the workspace, for what the client leaves.

        ``None`` is this process's own: relative paths in the user's arguments start there.
        """
        return None if _has_relative_path(self.options.run_args) else self.workspace.path

    def memory_loss(self, since: float) -> str | None:
        """Find out whether the whole container was killed for its memory.

        Args:
            since: seconds since 1970; earlier deaths do not count.

        Returns:
            A clause for an error message; empty if it was not killed for its memory, and ``None``
            if that is unknown.
        """
        try:
            # One second earlier, as the engine's clock may differ from ours.
            lost = self.runtime.ran_out_of_memory(self.name, since - 1, self.directory)
        except ContainersError:
            return None  # the engine may be gone too
        if not lost:
            return None if lost is None else ""
        limit = self.limits.memory
        may = f": it may use no more than {format_size(limit)} (memory=…)" if limit else ""
        return f"it was killed for its memory{may}"

    def _start_error(
        self, spec: ContainerSpec, closed: Closed, bundle: Bundle, started: float
    ) -> Exception:
        needed = ".".join(str(part) for part in bundle.python)
        if closed.exit_code == TOO_OLD:
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
        return self.runtime.start_error(spec, closed.exit_code, closed.stderr)


def _has_relative_path(arguments: Sequence[str]) -> bool:
    words = [word for argument in arguments for word in re.split("[=:,]", argument)]
    return any(
        word and not word.startswith("/") and os.path.lexists(word) for word in words
    ) or any(argument.startswith(("--cidfile", "--pidfile")) for argument in arguments)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].partition(": ")[2] or lines[-1] if lines else "it said nothing"
