"""Starts a sandbox's container, and waits for its guest's hello."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlm_containers import images
from rlm_containers.container.bundle import PYTHON_OPTIONS, TOO_OLD, Bundle, guest_bundle
from rlm_containers.container.bytecode import ByteCode
from rlm_containers.container.image import SandboxImage
from rlm_containers.container.limits import Limits
from rlm_containers.errors import (
    ContainersError,
    ContainerStartError,
    GuestPythonError,
    ImageNotFoundError,
    SandboxLostError,
    SandboxStartError,
    UnsupportedByEngineError,
    format_size,
)
from rlm_containers.guest import wire
from rlm_containers.interpreter import KILLED, Closed, DirectSocket, Event, Frame, Pipe, printable
from rlm_containers.options import SandboxOptions
from rlm_containers.state import Workspace
from runtimes import (
    ContainerSpec,
    GpuRequest,
    InternalNetwork,
    Mount,
    OwnDirectory,
    Placement,
    Runtime,
)
from runtimes.text import get_logger
from runtimes.timelimit import TimeLimit

logger = get_logger("rlm_containers")

#: The name by which code in a container reaches the proxy on this host.
HOST_ALIAS = "host.docker.internal"

#: Seconds for the client of a failed start to end by itself.
_END_TIMEOUT = 10.0

#: How often to start again after an error that the engine itself calls passing.
_RETRIES = 2

# Large values get huge pages, where the kernel has them for whoever asks. Then a text of 100 MB is
# made in half the time, and a process that has it forks in a tenth. glibc knows it from 2.35 on:
# https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
_HUGE_PAGES = "glibc.malloc.hugetlb=1"

#: The names of Python on an image's PATH. Most images have both.
_INTERPRETERS = ("python3", "python")

# What docker 20-28 and podman 3-5, with runc or crun, say when the image lacks the program. Their
# inits, tini and catatonit, start before the program is looked for, and say it in their own words.
_NO_PROGRAM = re.compile(
    r"executable file .*not found|no such file or directory: OCI runtime|"
    r"exec: \"python3?\"|stat python3?: no such file|exec python3? failed|failed to exec pid1",
    re.IGNORECASE,
)

# How docker 20-28, Docker Desktop and podman 4-5 say that they have no such directory to mount.
_NO_SOURCE = re.compile(
    r"bind source path does not exist|statfs [^:]+: no such file|not shared from (the host|OS X)|"
    r"mounts denied",
    re.IGNORECASE,
)

# The official images of Python have no files in the workspace's place.
_OFFICIAL = re.compile(r"(docker\.io/)?(library/)?python:")

# The images whose configuration this process has looked at: asking costs a call of the engine.
_looked_at: set[str] = set()

# What Python 2 says to the first of PYTHON_OPTIONS.
_UNKNOWN_OPTION = "Unknown option: -I"


@dataclass(frozen=True)
class Hello:
    """What a guest says first.

    Attributes:
        python: the version of its Python.
        wrote: whether it has written a file into its workspace.
    """

    python: str
    wrote: bool


@dataclass(frozen=True)
class Launched:
    """A container that runs.

    Attributes:
        pipe: the pipe to its guest.
        python: the version of its Python.
        shared: whether its workspace is the directory of this host.
        byte_code: what is kept of the image's byte code.
    """

    pipe: Pipe
    python: str
    shared: bool
    byte_code: ByteCode


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Starts one container, with as many attempts as finding the image and its Python takes.

    Attributes:
        runtime: the engine.
        image: the sandbox's image.
        options: the sandbox's options.
        limits: how much the container may use.
        network: what the container can reach.
        workspace: the directory of this host for its ``/workspace``.
        name: the container's name.
        labels: the container's labels.
        limit: how long the start may take. Getting the image does not count.
        watch: called with the process id of every client of the engine that is started.
        opened: called with the pipe of every container that is started. What it raises ends the
            start.
    """

    runtime: Runtime
    image: SandboxImage
    options: SandboxOptions
    limits: Limits
    network: Literal["bridge", "none"] | InternalNetwork
    workspace: Workspace
    name: str
    labels: Mapping[str, str]
    limit: TimeLimit
    watch: Callable[[int], None] = lambda client: None
    opened: Callable[[Pipe], None] = lambda pipe: None

    def run(self) -> Launched:
        """Get the image, start the container, and wait for its guest's greeting.

        Raises:
            ImageNotFoundError: the image is not here and cannot be pulled.
            ImageBuildError: what the options add to the image cannot be built.
            GuestPythonError: the image has no Python, or too old a one.
            ContainerStartError: the engine refused.
            SandboxStartError: the guest did not come up.
            UnsupportedByEngineError: the container should see files of this host, and does not.
        """
        bundle = guest_bundle()
        with self.limit.paused():
            image = self.image.get(self.runtime)
        searched = False
        retries = _RETRIES
        interpreters = list(_INTERPRETERS)
        while True:
            shared = self._shares_files()
            spec = self._spec(image, interpreters[0], bundle, shared=shared)
            byte_code = ByteCode.of(self.runtime, image, bundle)
            started = time.time()
            pipe = self._open(spec, shared=shared)
            try:
                self.opened(pipe)
                greeting = self._greeting(pipe, bundle, byte_code)
                if isinstance(greeting, Hello) and not (shared and self._lacks_files(greeting)):
                    images.note_use(self.runtime, image)  # may wait for a lock
                    self._warn_of_hidden_files(image)
                    return Launched(pipe, greeting.python, shared, byte_code)
            except BaseException:
                self._abandon(pipe)
                raise
            pipe.close(_END_TIMEOUT)
            if isinstance(greeting, Hello):
                self._note_that_files_are_not_shared()
                continue
            if greeting.exit_code is None:
                self._remove()  # it was hung up on, and did not end by itself
            if _NO_PROGRAM.search(greeting.stderr) and len(interpreters) > 1:
                interpreters.pop(0)
                continue
            if shared and self._is_refusal_of_files(greeting.stderr):
                self._note_that_files_are_not_shared()
                continue
            error = self._start_error(spec, greeting, bundle, started)
            can_search = not (searched or self.runtime.pulls_at_start)
            if isinstance(error, ImageNotFoundError) and can_search:
                # Asking before the first try would cost every start a call of the engine.
                searched = True
                if not self.runtime.image_exists(image):
                    with self.limit.paused():
                        image = self.image.get(self.runtime, missing=True)
                continue
            if isinstance(error, ContainerStartError) and error.transient and retries:
                retries -= 1
                logger.info("%s: trying again: %s", self.name, error.what)
                self.runtime.remove(self.name)  # a half-made container has the name
                continue
            raise error

    def _shares_files(self) -> bool:
        """Tell whether the container is to see this host's files.

        Raises:
            UnsupportedByEngineError: it must, and cannot.
        """
        if self.options.workspace in ("memory", "volume"):
            return False
        shared = self.runtime.shares_files is not False
        needed = 'workspace="shared"' if self.options.workspace else "mounts=…"
        if not shared and (self.options.workspace or self.options.mounts):
            raise UnsupportedByEngineError(
                f"The containers of {self.runtime.name} do not see this machine's files: it runs "
                "on another machine (remote), or in a virtual one that does not share "
                f"{self.workspace.path.parent}. So {needed} cannot be used.",
                remedy="Send files with Sandbox.put_file() and contexts, or use an engine of this "
                "machine. Of a virtual machine, share the directory, or move it: XDG_CACHE_HOME.",
                container=self.name,
            )
        return shared

    def _lacks_files(self, hello: Hello) -> bool:
        """Tell whether a container does not see the directory that is mounted as its workspace."""
        # What an earlier cell has left under that name means nothing, and may be a directory.
        if not hello.wrote:
            return False  # its disk is full, or it is there already
        if self.workspace.take(wire.HELLO):
            self.runtime.shares_files = True
            return False
        return True

    def _is_refusal_of_files(self, stderr: str) -> bool:
        """Tell whether an engine says that it has no directory that this host has."""
        return (
            str(self.workspace.path) in stderr
            and _NO_SOURCE.search(stderr) is not None
            and self.workspace.path.is_dir()
        )

    def _note_that_files_are_not_shared(self) -> None:
        self.runtime.shares_files = False
        logger.info(
            "%s: the engine does not see this machine's files: they go through the pipe", self.name
        )

    def _open(self, spec: ContainerSpec, *, shared: bool) -> Pipe:
        """Start the client that starts the container."""
        direct = self._direct() if shared else None
        try:
            process = self.runtime.open(spec)
            try:
                if process.pid:
                    self.watch(process.pid)
                return Pipe(process, direct=direct)
            except BaseException:
                process.kill()
                process.close()
                self._remove()
                raise
        except BaseException:
            if direct is not None:
                direct.close()
            raise

    def _direct(self) -> DirectSocket | None:
        try:
            return DirectSocket(self.workspace.path)
        except OSError as error:
            logger.info("%s: there is no direct connection: %s", self.name, error)
            return None

    def _greeting(self, pipe: Pipe, bundle: Bundle, byte_code: ByteCode) -> Hello | Closed:
        """Send the guest. Return its greeting, or how the container ended."""
        try:
            for frame in (bundle.modules, byte_code.frame):
                pipe.write(Frame(memoryview(frame)), timeout=self.limit.left())
        except SandboxLostError:
            pass  # what is received next says how it ended, or that it is late
        with contextlib.suppress(TimeoutError):
            for item in pipe.items(self.limit.left()):
                if isinstance(item, Closed):
                    return item
                if isinstance(item, Event) and item.content.get("event") == "hello":
                    version = printable(item.content.get("python"), 20)
                    return Hello(version, item.content.get("wrote") is True)
        self._remove()  # its program may never read that the pipe is closed
        raise SandboxStartError(
            f"The container was not up within {self.limit.seconds:g} s: "
            "the engine's `run` has brought no hello from its guest.",
            remedy="Raise start_timeout, or see what keeps the engine busy.",
            container=self.name,
        )

    def _warn_of_hidden_files(self, image: str) -> None:
        """Warn once if the workspace hides what the image has in its working directory."""
        if image in _looked_at or _OFFICIAL.match(image):
            return
        _looked_at.add(image)
        try:
            workdir = self.runtime.inspect_image(image).workdir
        except ContainersError as error:
            logger.debug("%s: %s", self.name, error)
            return
        if f"{workdir}/".startswith(f"{wire.WORKSPACE}/"):
            logger.warning(
                "%s: the image %r works in %s. Its files there are hidden: the sandbox has its own "
                "%s. Build it with another WORKDIR.",
                self.name,
                image,
                workdir,
                wire.WORKSPACE,
            )

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

    def _spec(self, image: str, interpreter: str, bundle: Bundle, *, shared: bool) -> ContainerSpec:
        options, limits = self.options, self.limits
        mounts: tuple[Mount, ...] = options.mounts
        own = None
        if shared:
            workspace = Mount(source=self.workspace.path, target=wire.WORKSPACE, read_only=False)
            mounts = (workspace, *mounts)
        else:
            own = (
                OwnDirectory(target=wire.WORKSPACE, kind="volume")
                if options.workspace == "volume"
                else OwnDirectory(target=wire.WORKSPACE, size=limits.workspace)
            )
        strict = options.isolation == "strict"
        assert options.gpus is None or isinstance(options.gpus, GpuRequest)
        assert not isinstance(options.shm_size, str)
        assert options.placement is None or isinstance(options.placement, Placement)
        return ContainerSpec(
            image=image,
            command=(interpreter, *PYTHON_OPTIONS, "-c", bundle.boot),
            name=self.name,
            labels=self.labels,
            mounts=mounts,
            own_directory=own,
            # A home that exists and can be written to, whoever the image's user is.
            env={"HOME": wire.WORKSPACE, wire.TUNABLES: _HUGE_PAGES},
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
            shm_size=options.shm_size,
            gpus=options.gpus,
            directory=self.directory,
            extra_args=options.run_args,
            placement=options.placement,
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
        is_ancient = _UNKNOWN_OPTION in closed.stderr
        if closed.exit_code == TOO_OLD or is_ancient:
            version = "it is older than 3.4" if is_ancient else _last_line(closed.stderr)
            return GuestPythonError(
                f"The Python in the image {spec.image!r} is too old: {version}.",
                remedy=f"Use an image with Python {needed} or later.",
                container=self.name,
            )
        if _NO_PROGRAM.search(closed.stderr):
            return GuestPythonError(
                f"The image {spec.image!r} has neither python3 nor python on its PATH.",
                remedy=f"Use an image with Python {needed} or later, such as python:3.11-slim.",
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
