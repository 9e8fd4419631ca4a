"""Every option of a sandbox: its type, its default, its check and its documentation."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal, TypedDict

from rlm_containers.errors import OptionError
from rlm_containers.options.conflicts import check_conflicts
from rlm_containers.options.values import (
    AUTO,
    as_bytes,
    as_environment,
    as_mounts,
    as_placement,
    as_tuple,
    gpu_request,
    is_count,
    is_cpus,
    is_disk,
    is_environment,
    is_memory,
    is_path_or_lines,
    is_path_or_none,
    is_pids,
    is_pool,
    is_seconds,
    is_text,
    is_text_or_none,
    is_texts,
    is_user,
    is_workspace_size,
    path_text,
    readings,
    shown_option,
    with_group,
    wrong_value,
)
from rlm_containers.state import is_session_name
from runtimes import GpuRequest, Mount, Placement, Runtime
from runtimes.text import brief


class _Default(str):
    """A default that differs by identity from the same text given by a caller."""

    __slots__ = ()


#: The image of sandboxes that name none, with arguments or in the configuration.
DEFAULT_IMAGE: str = _Default("python:3.11-slim")

#: What a container can reach.
Network = Literal["bridge", "none", "internal"]

#: Where a container has its workspace.
Place = Literal["shared", "memory", "volume"]

#: What a cell's answer waits for.
Durability = Literal["async", "sync"]


class OptionArguments(TypedDict, total=False):
    """The keyword arguments of a sandbox besides its image, for type checkers."""

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
    workspace: Place | None
    workspace_size: int | str | None
    shm_size: int | str | None
    gpus: Literal["all"] | int | Iterable[str | int] | None
    placement: Placement | Mapping[str, Any] | None
    run_args: Iterable[str]
    session: str | None
    durability: Durability
    restarts: int
    heirs: Literal["auto", "never"]
    pool: int | None
    start_timeout: float
    cell_timeout: float | None
    lm_timeout: float
    max_lm_calls: int | None
    max_session_lm_calls: int | None
    max_output: int


@dataclass(frozen=True)
class _Rule:
    """What an option takes.

    Attributes:
        expected: the values in words, after "must be".
        accepts: whether a converted value is right.
        convert: turns what a caller gives into what is kept.
    """

    expected: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], object]


def _takes(
    expected: str,
    accepts: Callable[[Any], bool],
    convert: Callable[[Any], object] = lambda value: value,
) -> dict[str, _Rule]:
    """Make the metadata of an option's field; see :class:`_Rule`."""
    return {"rule": _Rule(expected, accepts, convert)}


def _is_image(value: object) -> bool:
    # With a dash it would be read as an option of `run`.
    return is_text(value) and not str(value).startswith("-")


@dataclass(frozen=True, kw_only=True, repr=False)
class SandboxOptions:
    """The options of a sandbox.

    Attributes:
        profile: a table ``[profiles.NAME]`` of the configuration file to take options from.
        image: the image reference. Needs Python 3.9 or later in it, nothing else.
        packages: what ``pip install`` adds to the image, such as ``"pandas==2.*"``, or wheels on
            this host. An image with these four is built once and used again.
        requirements: the path of a file for ``pip install -r``.
        system_packages: what apt-get, apk or dnf adds.
        dockerfile: the path of a Dockerfile, or its text if it has several lines. It builds on the
            image, unless it has a ``FROM`` of its own. The packages are installed on top.
        setup_code: a cell to run first. If it fails, so does the start.
        runtime: the engine, as for :func:`runtimes.get_runtime`; ``None`` finds one.
        isolation: ``"default"``: no capabilities, no new privileges, an unprivileged user, and
            no write access to the host except for the workspace. ``"strict"``: besides, no network,
            a read-only root file system, a ``/tmp`` in memory, and limits that hold: an engine that
            cannot enforce one is refused.
        network: ``"bridge"``: the engine's default network. ``"none"``: no network;
            ``llm_query`` works all the same, over the container's pipe. ``"internal"``: the
            container reaches this host, with the proxy on it, and nothing else. ``None``: the
            isolation decides, for ``"bridge"`` or, where it is strict, ``"none"``.
        env: environment variables for the cells. They travel over the pipe and may be secret.
            Variables that Python reads as it starts, such as ``PYTHONHASHSEED``, come too late that
            way and belong in the image.
        mounts: directories and files of this host for the container to see: each a
            :class:`~runtimes.Mount`, ``"source:target"`` or ``"source:target:rw"``. They are
            kept as mounts with their symlinks resolved.
        user: ``"UID:GID"`` or ``"UID"`` to run as in the container, where it can write to the
            workspace; the GID is the same number if it is left out. ``None`` for an unprivileged
            user that can.
        memory: the most memory the container may use, without any swap: bytes, at least 32 MiB,
            or a string such as ``"512m"``, ``"2g"`` or ``"2GB"`` (``k``, ``m``, ``g``, ``t`` and
            ``KiB`` to ``TiB`` count in 1024s; ``KB`` to ``TB`` in 1000s). ``"auto"``: half of what
            the engine's machine has, if the engine enforces it. ``None`` for no limit.
        cpus: the processor time that it may use: ``0.5`` is half a processor; ``None`` for no
            limit.
        pids: the most processes and threads it may have, at least 16. ``"auto"``: 1024, if the
            engine enforces it. ``None`` for no limit.
        disk: the most it may write outside the workspace, in bytes or as a string, at least 1 MiB.
            Few engines can enforce it. With strict isolation all can: then it limits ``/tmp``,
            which is kept in memory. It is also the largest size of any single file, in the
            workspace too. ``None`` for no limit.
        workspace: ``"shared"``: the container's ``/workspace`` is a directory of this host.
            ``"memory"``: it is in the container's memory, and files travel through the pipe. That
            needs no file of this host, and counts as ``memory``. ``"volume"``: the same on the
            engine's disk; docker then builds a small image once. ``None``: shared if the engine
            sees this host's files, which the first container shows, and else in memory.
        workspace_size: the most that all files of the workspace may take together, in bytes (at
            least 1 MiB) or as a string. The host watches them: a cell that makes them grow past it
            is interrupted, a moment later, and :meth:`Sandbox.put_file` and :meth:`Sandbox.load`
            are refused. The saved variables are not counted; they may take three times ``memory``.
            ``"auto"``: what is there at the start, and half of what the disk has free, at most
            16 GiB. ``None`` for no limit. A workspace in memory cannot grow past it at all, the
            saved variables are counted, and ``"auto"`` is half of ``memory``.
        shm_size: the size of ``/dev/shm``, in bytes or as a string, at least 1 MiB. Files in it use
            up ``memory``. ``None`` for the engine's default, mostly 64 MiB: too little for workers
            of torch that share tensors.
        gpus: the GPUs that it may use: ``"all"``, how many, or a list of their indices or UUIDs.
        placement: where the pods of ``runtime="kubernetes"`` run, as a mapping with some of the
            names of :class:`~runtimes.Placement`: ``node_selector``, ``tolerations``,
            ``runtime_class``, ``service_account``, ``pull_secrets``, ``priority_class``,
            ``deadline``. ``None`` for wherever the cluster puts them.
        run_args: further arguments for the engine's ``run``. They are checked only for
            contradictions with the other options.
        session: the name of a session that outlives the sandbox: its variables and files are
            there again when a sandbox of that name starts, in any process, on any engine. One
            sandbox at a time can have it. ``None`` for one that ends with the sandbox.
        durability: ``"async"``: a cell is answered when it has ended, and saved after that.
            ``"sync"``: a cell is answered when its checkpoint is written and, in a named session,
            has reached the disk: it then survives a power failure. That costs some milliseconds
            for each cell, and more on slow disks or with much to save.
        heirs: ``"auto"``: where it takes long to save the variables, or some cannot be saved, a
            forked child of the interpreter holds them. It saves them while the next cells run, and
            goes on in the interpreter's place if that dies. ``"never"``: the next cell waits.
        pool: how many containers of this kind wait in this process, started and used by nobody, for
            sandboxes to start in milliseconds. The first sandbox starts as without it, and has them
            made. All with the same options share them, the children of an RLM above all. They are
            ended after five minutes without a new sandbox. ``None`` for none.
        restarts: how often another container takes the place of one that is lost: killed by
            somebody or by the kernel, with its engine or machine, or by a cut connection. The next
            cell then goes on with what was saved, and its result names what that has cost. 0 for
            an error, :class:`SandboxLostError`.
        start_timeout: seconds until a container and its interpreter must be ready, and until an
            interpreter that replaces a dead one must be. Getting the image is not counted.
        cell_timeout: seconds that a cell may run; ``None`` for no limit. Time in which it waits for
            the host, above all for the answer of a language model, is not counted. At the limit the
            cell is interrupted, and killed if it goes on for five seconds. The checkpoint after a
            cell may take as long when another cell waits for it.
        lm_timeout: seconds to wait for one answer of a language model, to one prompt or one batch.
            After that the cell gets an error string. No request of a cell stops its clock for
            longer, be it a recursive call or one of a tool.
        max_lm_calls: the most prompts that one cell may send. Each prompt of a batch and each
            recursive one counts; ``None`` for no limit. After that the cell gets error strings.
        max_session_lm_calls: the same for all cells of the sandbox together, and for those of all
            sandboxes that are started to answer its calls, such as the children of an RLM.
        max_output: the characters that are kept of each of a cell's two output streams; of a
            command's the bytes.
    """

    profile: str | None = field(
        default=None, metadata=_takes("the name of a profile or None", is_text_or_none)
    )
    image: str = field(default=DEFAULT_IMAGE, metadata=_takes("the name of an image", _is_image))
    packages: tuple[str, ...] = field(
        default=(), metadata=_takes("a list of requirements", is_texts, as_tuple)
    )
    requirements: str | None = field(
        default=None, metadata=_takes("a path or None", is_path_or_none, path_text)
    )
    system_packages: tuple[str, ...] = field(
        default=(), metadata=_takes("a list of names", is_texts, as_tuple)
    )
    dockerfile: str | None = field(
        default=None, metadata=_takes("a path, a text or None", is_path_or_lines, path_text)
    )
    setup_code: str | None = field(
        default=None, metadata=_takes("a string or None", lambda v: isinstance(v, str | None))
    )
    runtime: str | Runtime | None = field(
        default=None,
        metadata=_takes(
            'a name such as "podman", a path or a Runtime',
            lambda v: isinstance(v, (str, Runtime, type(None))),
        ),
    )
    isolation: Literal["default", "strict"] = field(
        default="default",
        metadata=_takes('"default" or "strict"', lambda v: v in ("default", "strict")),
    )
    network: Network | None = field(
        default=None,
        metadata=_takes(
            '"bridge", "none", "internal" or None',
            lambda v: v in ("bridge", "none", "internal", None),
        ),
    )
    env: Mapping[str, str] = field(
        default_factory=dict,
        metadata=_takes("a mapping of strings to strings", is_environment, as_environment),
    )
    mounts: tuple[Mount, ...] = field(
        default=(),
        metadata=_takes("a list of mounts", lambda v: isinstance(v, tuple), as_mounts),
    )
    user: str | None = field(
        default=None,
        metadata=_takes('"UID" or "UID:GID", in numbers, or None', is_user, with_group),
    )
    memory: int | str | None = field(
        default=AUTO,
        metadata=_takes(
            'a number of bytes, at least 32 MiB, a string such as "2g", "auto" or None',
            is_memory,
            as_bytes,
        ),
    )
    cpus: float | None = field(
        default=None,
        metadata=_takes("a number of processors, at least 0.01, or None", is_cpus),
    )
    pids: int | str | None = field(
        default=AUTO,
        metadata=_takes('a number of processes, at least 16, "auto" or None', is_pids),
    )
    disk: int | str | None = field(
        default=None,
        metadata=_takes(
            'a number of bytes, at least 1 MiB, a string such as "2g" or None', is_disk, as_bytes
        ),
    )
    workspace: Place | None = field(
        default=None,
        metadata=_takes(
            '"shared", "memory", "volume" or None',
            lambda v: v in ("shared", "memory", "volume", None),
        ),
    )
    workspace_size: int | str | None = field(
        default=AUTO,
        metadata=_takes(
            'a number of bytes, at least 1 MiB, a string such as "2g", "auto" or None',
            is_workspace_size,
            as_bytes,
        ),
    )
    shm_size: int | str | None = field(
        default=None,
        metadata=_takes(
            'a number of bytes, at least 1 MiB, a string such as "2g" or None', is_disk, as_bytes
        ),
    )
    gpus: GpuRequest | Literal["all"] | int | Iterable[str | int] | None = field(
        default=None,
        metadata=_takes(
            '"all", a number, a list of indices or UUIDs, or None',
            lambda v: isinstance(v, GpuRequest | None),
            gpu_request,
        ),
    )
    placement: Placement | Mapping[str, Any] | None = field(
        default=None,
        metadata=_takes(
            'a mapping such as {"node_selector": {"disk": "fast"}} or None',
            lambda v: isinstance(v, Placement | None),
            as_placement,
        ),
    )
    run_args: tuple[str, ...] = field(
        default=(), metadata=_takes("a list of strings", is_texts, as_tuple)
    )
    session: str | None = field(
        default=None,
        metadata=_takes(
            "up to 64 letters, digits, '.', '_' and '-', or None",
            lambda v: v is None or is_session_name(v),
        ),
    )
    durability: Durability = field(
        default="async",
        metadata=_takes('"async" or "sync"', lambda v: v in ("async", "sync")),
    )
    heirs: Literal["auto", "never"] = field(
        default="auto",
        metadata=_takes('"auto" or "never"', lambda v: v in ("auto", "never")),
    )
    pool: int | None = field(
        default=None,
        metadata=_takes("a number of containers, at most 1000, or None", is_pool),
    )
    restarts: int = field(
        default=0,
        metadata=_takes("a number, at least 0", lambda v: v is not None and is_count(v, 0)),
    )
    start_timeout: float = field(default=60.0, metadata=_takes("a number of seconds", is_seconds))
    cell_timeout: float | None = field(
        default=None,
        metadata=_takes("a number of seconds or None", lambda v: v is None or is_seconds(v)),
    )
    lm_timeout: float = field(default=600.0, metadata=_takes("a number of seconds", is_seconds))
    max_lm_calls: int | None = field(default=None, metadata=_takes("a number or None", is_count))
    max_session_lm_calls: int | None = field(
        default=None, metadata=_takes("a number or None", is_count)
    )
    max_output: int = field(
        default=1_000_000,
        metadata=_takes(
            "a number of characters, at least 100", lambda v: v is not None and is_count(v, 100)
        ),
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            kept = _checked(option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, kept)
        check_conflicts(self)

    def __repr__(self) -> str:
        shown = (f"{name}={shown_option(name, getattr(self, name))}" for name in _OPTIONS)
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def reaches_disk(self) -> bool:
        """Whether what is acknowledged must survive a power failure."""
        return self.durability == "sync" and self.session is not None

    @property
    def has_heirs(self) -> bool:
        """Whether variables may be saved beside the interpreter."""
        return self.heirs == "auto" and self.durability == "async"

    @property
    def effective_network(self) -> Network:
        """The network, which the isolation decides where ``network`` is ``None``."""
        return self.network or ("none" if self.isolation == "strict" else "bridge")

    @property
    def plain_network(self) -> Literal["bridge", "none"]:
        """The effective network as one that every engine has; internal ones count as bridges."""
        return "none" if self.effective_network == "none" else "bridge"


_OPTIONS = {option.name: option for option in dataclasses.fields(SandboxOptions)}


def read_option(name: str, value: object, *, typed: bool = False) -> object:
    """Read an option's value from the command line, a variable or the configuration file.

    Args:
        name: the option.
        value: a text, or a value of another type, which means itself.
        typed: whether the source has numbers and lists of its own, as TOML does: a text means
            itself or, if it is ``"none"``, ``None``. Otherwise it may mean anything that
            :func:`~rlm_containers.options.values.readings` knows.

    Returns:
        The first reading that the option accepts, as a caller would give it.

    Raises:
        OptionError: the option accepts none. The message is that for the text itself.
    """
    if not isinstance(value, str):
        meanings: Iterable[object] = (value,)
    elif typed:
        meanings = (value, None) if value == "none" else (value,)
    else:
        meanings = readings(value)
    refusals = []
    for meaning in meanings:
        try:
            _checked(name, meaning)
        except OptionError as error:
            refusals.append(error)
        else:
            return meaning
    raise refusals[0]


def _checked(name: str, value: object) -> object:
    """Convert and check an option's value.

    Raises:
        OptionError: the option does not take it.
    """
    rule: _Rule = _OPTIONS[name].metadata["rule"]
    kept = rule.convert(value)
    if not rule.accepts(kept):
        raise wrong_value(name, rule.expected, value)
    return kept


def unknown_option(name: str, known: Iterable[str]) -> OptionError:
    """Make the error for an argument that nothing takes; it names the nearest of ``known``."""
    names = sorted(known)
    # Prefixes come second: "environment" means "env", though "requirements" is more like it.
    near = (
        difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        or [other for other in names if other.startswith(name) or name.startswith(other)]
        or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    )
    remedy = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}."
    return OptionError(f"There is no argument {brief(name)}.", remedy=remedy)
