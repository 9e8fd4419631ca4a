"""Every option of a sandbox, with its default and its check."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal, Self, TypedDict

from rlm_containers.errors import OptionError
from rlm_containers.options.conflicts import check_conflicts
from rlm_containers.options.mounts import user_mounts
from rlm_containers.options.sizes import AUTO, parse_size
from rlm_containers.options.values import (
    gpu_request,
    is_count,
    is_cpus,
    is_disk,
    is_environment,
    is_memory,
    is_pids,
    is_positive,
    is_text,
    is_text_or_none,
    is_user,
    path_text,
    sequence,
    with_group,
    wrong_value,
)
from rlm_containers.state import is_session_name
from runtimes import GpuRequest, Mount, Runtime


class _Default(str):
    """A default that can be told from what a caller gave, should that be the same."""

    __slots__ = ()


#: The image of sandboxes for which none is named, here or in the configuration.
DEFAULT_IMAGE: str = _Default("python:3.11-slim")

#: What a container can reach.
Network = Literal["bridge", "none", "internal"]

_LISTS = ("packages", "system_packages", "run_args")


class OptionArguments(TypedDict, total=False):
    """The keyword arguments that a sandbox takes besides its image, for type checkers."""

    profile: str | None
    packages: Iterable[str]
    requirements: str | PathLike[str] | None
    system_packages: Iterable[str]
    dockerfile: str | PathLike[str] | None
    runtime: str | Runtime | None
    isolation: Literal["default", "strict"]
    network: Network | None
    env: Mapping[str, str]
    mounts: Iterable[str | Mount]
    user: str | None
    memory: int | str | None
    cpus: float | None
    pids: int | str | None
    disk: int | str | None
    gpus: Literal["all"] | int | Iterable[str | int] | None
    run_args: Iterable[str]
    session: str | None
    start_timeout: float
    cell_timeout: float | None
    lm_timeout: float
    max_lm_calls: int | None
    max_session_lm_calls: int | None
    max_output: int


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """What a sandbox is to be.

    Attributes:
        profile: a table ``[profiles.NAME]`` of the configuration file to take options from, see
            :mod:`rlm_containers.options.sources`.
        image: the image reference. Needs Python 3.9 or later in it, nothing else.
        packages: what ``pip install`` is to add to the image, such as ``"pandas==2.*"``, or wheels
            on this host. An image with these four is built once, and found again.
        requirements: the path of a file for ``pip install -r``.
        system_packages: what apt-get, apk or dnf is to add.
        dockerfile: the path of a Dockerfile, or its text if it has several lines. It stands on the
            image, unless it has a ``FROM`` of its own; the packages go on top.
        setup_code: a cell to run first. If it fails, so does the start.
        runtime: the engine, as for :func:`runtimes.get_runtime`; ``None`` finds one.
        isolation: ``"default"``: no capabilities, no new privileges, an unprivileged user, and
            nothing of the host's to write to but the workspace. ``"strict"``: besides, no network,
            a root file system that can only be read, a ``/tmp`` in memory, and limits that hold:
            an engine that cannot enforce one is refused.
        network: ``"bridge"``: the engine's default network. ``"none"``: no network;
            ``llm_query`` works all the same, over the container's pipe. ``"internal"``: this host
            can be reached, with the proxy on it, and nothing beyond it. ``None``: what the
            isolation says, which is ``"bridge"`` or, where it is strict, ``"none"``.
        env: environment variables for the cells. They travel over the pipe and may be secret;
            what the interpreter reads as it starts (``PYTHONHASHSEED``) comes too late that way
            and belongs into the image.
        mounts: directories and files of this host for the container to see: each a
            :class:`~runtimes.spec.Mount`, ``"source:target"`` or ``"source:target:rw"``. Kept as
            mounts with their symlinks resolved.
        user: ``"UID:GID"`` or ``"UID"`` to run as in the container, where it can write to the
            workspace; the GID is the same number if it is left out. ``None`` for an unprivileged
            user that can.
        memory: the most memory the container may use, without any swap: bytes, at least 32 MiB,
            or a string such as ``"512m"`` or ``"2g"``. ``"auto"``: half of what the engine's
            machine has, if the engine enforces it. ``None`` for no limit.
        cpus: the processors' time that it may use: ``0.5`` is half a processor's; ``None`` for
            no limit.
        pids: the most processes and threads it may have, at least 16. ``"auto"``: 1024, if the
            engine enforces it. ``None`` for no limit.
        disk: the most it may write outside the workspace, in bytes or as a string, at least 1 MiB,
            which few engines can enforce; and with strict isolation all can, for that is
            ``/tmp``, kept in memory. Also the largest that any single file may be, in the workspace
            too. All files of the workspace together are not limited. ``None`` for no limit.
        gpus: the GPUs that it may use: ``"all"``, how many, or a list of their indices or UUIDs.
        run_args: further arguments for the engine's ``run``. Nothing is checked in them but that
            they do not contradict what is said here.
        session: the name of a session that outlives the sandbox: its variables and files are
            there again when a sandbox of that name is started, by whatever process, on whatever
            engine. One sandbox at a time has it. ``None`` for one that ends with the sandbox.
        start_timeout: seconds until a container and its interpreter must be ready, pulling its
            image not counted; and the next interpreter, when one has died.
        cell_timeout: seconds that a cell may run; ``None`` for no limit. Time in which it waits for
            the host, for the answer of a language model above all, is not counted. At the limit the
            cell is interrupted, and killed if it goes on for five seconds. The checkpoint after a
            cell may take as long when another cell waits for it.
        lm_timeout: seconds to wait for one answer of a language model, to one prompt or one batch.
            What comes later is an error string in the cell. No request of a cell stops its clock
            for longer, be it a recursive call or one of a tool.
        max_lm_calls: the most prompts that one cell may ask, those of batches and recursive ones
            counted one by one; ``None`` for no limit. Past it the cell gets error strings.
        max_session_lm_calls: the same for all cells of the sandbox together.
        max_output: characters that are kept of each of a cell's two output streams.
    """

    profile: str | None = None
    image: str = DEFAULT_IMAGE
    packages: tuple[str, ...] = ()
    requirements: str | None = None
    system_packages: tuple[str, ...] = ()
    dockerfile: str | None = None
    setup_code: str | None = None
    runtime: str | Runtime | None = None
    isolation: Literal["default", "strict"] = "default"
    network: Network | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    user: str | None = None
    memory: int | str | None = AUTO
    cpus: float | None = None
    pids: int | str | None = AUTO
    disk: int | str | None = None
    gpus: GpuRequest | Literal["all"] | int | Iterable[str | int] | None = None
    run_args: tuple[str, ...] = ()
    session: str | None = None
    start_timeout: float = 60.0
    cell_timeout: float | None = None
    lm_timeout: float = 600.0
    max_lm_calls: int | None = None
    max_session_lm_calls: int | None = None
    max_output: int = 1_000_000

    def __post_init__(self) -> None:
        for name, value in (
            *((name, sequence(name, "a list of strings", getattr(self, name))) for name in _LISTS),
            *((name, path_text(getattr(self, name))) for name in ("requirements", "dockerfile")),
            ("mounts", user_mounts(sequence("mounts", "a list of mounts", self.mounts))),
            ("memory", parse_size(self.memory)),
            ("disk", parse_size(self.disk)),
            ("user", with_group(self.user)),
            ("gpus", gpu_request(self.gpus)),
        ):
            object.__setattr__(self, name, value)
        if isinstance(self.env, Mapping):
            object.__setattr__(self, "env", dict(self.env))  # the caller's may change
        for name, expected, good in (
            ("profile", "the name of a profile or None", is_text_or_none(self.profile)),
            ("image", "the name of an image", is_text(self.image)),
            ("packages", "a list of requirements", all(map(is_text, self.packages))),
            ("requirements", "a path or None", is_text_or_none(self.requirements)),
            ("system_packages", "a list of names", all(map(is_text, self.system_packages))),
            ("dockerfile", "a path, a text or None", is_text_or_none(self.dockerfile)),
            ("setup_code", "a string or None", isinstance(self.setup_code, str | None)),
            (
                "runtime",
                'a name such as "podman", a path or a Runtime',
                self.runtime is None or isinstance(self.runtime, (str, Runtime)),
            ),
            ("isolation", '"default" or "strict"', self.isolation in ("default", "strict")),
            (
                "network",
                '"bridge", "none", "internal" or None',
                self.network in ("bridge", "none", "internal", None),
            ),
            ("env", "a mapping of strings to strings", is_environment(self.env)),
            ("user", '"UID" or "UID:GID", in numbers, or None', is_user(self.user)),
            (
                "memory",
                'a number of bytes, at least 32 MiB, a string such as "2g", "auto" or None',
                is_memory(self.memory),
            ),
            ("cpus", "a number of processors, at least 0.01, or None", is_cpus(self.cpus)),
            ("pids", 'a number of processes, at least 16, "auto" or None', is_pids(self.pids)),
            (
                "disk",
                'a number of bytes, at least 1 MiB, a string such as "2g" or None',
                is_disk(self.disk),
            ),
            (
                "gpus",
                '"all", a number, a list of indices or UUIDs, or None',
                self.gpus is None or isinstance(self.gpus, GpuRequest),
            ),
            ("run_args", "a list of strings", all(map(is_text, self.run_args))),
            (
                "session",
                "up to 64 letters, digits, '.', '_' and '-', or None",
                self.session is None or is_session_name(self.session),
            ),
            ("start_timeout", "a number of seconds", is_positive(self.start_timeout)),
            (
                "cell_timeout",
                "a number of seconds or None",
                self.cell_timeout is None or is_positive(self.cell_timeout),
            ),
            ("lm_timeout", "a number of seconds", is_positive(self.lm_timeout)),
            ("max_lm_calls", "a number or None", is_count(self.max_lm_calls)),
            ("max_session_lm_calls", "a number or None", is_count(self.max_session_lm_calls)),
            (
                "max_output",
                "a number of characters, at least 100",
                is_count(self.max_output) and (self.max_output or 0) >= 100,
            ),
        ):
            if not good:
                raise wrong_value(name, expected, getattr(self, name))
        if self.image.startswith("-"):
            # It would be read as an option of `run`.
            raise wrong_value("image", "the name of an image", self.image)
        check_conflicts(vars(self))

    @property
    def effective_network(self) -> Network:
        """The network, also where ``network`` leaves it to the isolation."""
        return self.network or ("none" if self.isolation == "strict" else "bridge")

    @property
    def plain_network(self) -> Literal["bridge", "none"]:
        """The same where it is one that the engine has already."""
        return "none" if self.effective_network == "none" else "bridge"

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], also: Iterable[str] = ()) -> Self:
        """Options from keyword arguments.

        Args:
            arguments: as a user wrote them.
            also: names that the caller itself accepts, to be suggested for a misspelt one.

        Raises:
            OptionError: an argument is unknown (the message names the nearest that is not), or
                has a wrong type or value.
        """
        known = {option.name for option in dataclasses.fields(cls)}
        for name in arguments:
            if name not in known:
                raise unknown_option(name, {*known, *also})
        return cls(**arguments)


def unknown_option(name: str, known: Iterable[str]) -> OptionError:
    """The error for an argument that nothing takes."""
    names = sorted(known)
    # "environment" is no misspelt "requirements", though it has more letters of it than of "env".
    near = (
        difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        or [other for other in names if other.startswith(name) or name.startswith(other)]
        or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    )
    remedy = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}."
    return OptionError(f"There is no argument {name!r}.", remedy=remedy)
