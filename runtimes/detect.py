"""Which engine to use: the named one, or the first that answers."""

from __future__ import annotations

import os
import shlex
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath

from runtimes.base import Runtime
from runtimes.command import EngineCommand
from runtimes.docker import DockerRuntime, PodmanAnswersError
from runtimes.engine import ContainerEngine
from runtimes.errors import (
    ContainersError,
    EngineNotFoundError,
    EngineUnavailableError,
    UnknownRuntimeError,
)
from runtimes.forks import ModuleLock
from runtimes.kubernetes import KubernetesRuntime
from runtimes.podman import PodmanRuntime
from runtimes.text import brief, get_logger

logger = get_logger("runtimes")

#: The environment variable with the runtime to use when the caller names none.
ENVIRONMENT_VARIABLE = "RLM_CONTAINERS_RUNTIME"

#: Where third parties add a runtime. Users write the entry's name; it loads to a callable without
#: arguments that returns a :class:`~runtimes.Runtime`.
ENTRY_POINT_GROUP = "rlm_containers.runtimes"

#: Tried in this order when nothing is named.
_PREFERENCE: tuple[str, ...] = ("docker", "podman")

_BUILT_IN: dict[str, type[ContainerEngine | KubernetesRuntime]] = {
    "docker": DockerRuntime,
    "podman": PodmanRuntime,
    "kubectl": KubernetesRuntime,
}

#: Names of engines whose program has another name.
_PROGRAMS = {KubernetesRuntime.name: "kubectl"}

#: Characters of a command line that names a runtime. A longer one cannot be a path.
_LONGEST_NAME = 4000

_SETTINGS = (
    *("PATH", "DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST", "CONTAINERS_CONF"),
    "KUBECONFIG",
)

# The runtimes by their command lines and environments, so that each is asked for its info once.
_known: dict[tuple[str, ...], Runtime] = {}
_known_lock = ModuleLock()


def get_runtime(runtime: str | Runtime | None = None) -> Runtime:
    """Return the runtime for a name, once it has answered.

    Args:
        runtime: ``"docker"``, ``"podman"``, ``"kubernetes"``, a path to the binary of one, each
            with leading arguments (``"podman --remote"``, ``"kubectl --context lab"``), the name
            of an entry point in the group ``rlm_containers.runtimes``, or a :class:`Runtime`.
            ``None`` is the runtime that the environment variable ``RLM_CONTAINERS_RUNTIME`` names,
            or else the first of docker and podman whose engine answers.

    Raises:
        UnknownRuntimeError: the name is unknown, or its entry point cannot be loaded.
        EngineNotFoundError: the program is not installed.
        EngineUnavailableError: the program is there and no engine answers.
    """
    if isinstance(runtime, Runtime):
        return runtime
    if runtime is None:
        runtime = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if runtime is None:
        return _detect()
    if not isinstance(runtime, str):
        raise UnknownRuntimeError(
            f"runtime must be a name, a path or a Runtime, not {type(runtime).__name__}."
        )
    return _answering(runtime)


def runtime_names() -> tuple[str, ...]:
    """Return the names of all runtimes, whether they answer or not.

    The one that ``RLM_CONTAINERS_RUNTIME`` names comes first, then docker and podman, then third
    parties' runtimes.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    others = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
    return tuple(dict.fromkeys([*([named] if named else ()), *_PREFERENCE, *others]))


def _detect() -> Runtime:
    refusals = []
    for name in _PREFERENCE:
        try:
            found = _answering(name)
        except ContainersError as error:
            refusals.append(error)
        else:
            logger.debug("detected %s %s", name, found.info().version_text)
            return found
    installed = [error for error in refusals if not isinstance(error, EngineNotFoundError)]
    if installed:
        raise EngineUnavailableError(
            "No container engine answers. " + " ".join(error.what for error in installed),
            remedy=installed[0].remedy,
        )
    raise EngineNotFoundError(
        "Neither docker nor podman is on PATH.",
        remedy="Install Docker (https://docs.docker.com/engine/install/) or Podman "
        "(https://podman.io/docs/installation), or set RLM_CONTAINERS_RUNTIME.",
    )


def _answering(text: str) -> Runtime:
    """Return the runtime for a name, once it has answered."""
    found = _named(text)
    try:
        found.info()
    except PodmanAnswersError:
        found = _named(text, PodmanRuntime)
        found.info()
    return found


def _named(text: str, engine: type[ContainerEngine] | None = None) -> Runtime:
    """Return the runtime for a name; ``engine`` if its program turned out to be that one's."""
    if len(text) > _LONGEST_NAME:
        raise UnknownRuntimeError(f"The runtime {brief(text)} is not known: its name is too long.")
    try:
        # A path may contain spaces, which separate no arguments then.
        argv = (text,) if Path(text).is_file() else tuple(shlex.split(text))
    except ValueError as error:
        raise UnknownRuntimeError(f"The runtime {brief(text)} cannot be read: {error}.") from None
    if argv and argv[0] in _PROGRAMS:
        argv = (_PROGRAMS[argv[0]], *argv[1:])
    if not argv:
        raise UnknownRuntimeError("runtime is empty.", remedy='Write "docker" or "podman".')
    with _known_lock:
        # The process, since what a forked child has may be locked by a lost thread of its parent.
        # The variables, since the answer of `info` depends on them.
        key = (str(os.getpid()), *argv, *(os.environ.get(name, "") for name in _SETTINGS))
        if engine is not None:
            _known[key] = engine(EngineCommand(argv))
        elif key not in _known:
            _known[key] = _make(text, argv)
        return _known[key]


def _make(text: str, argv: tuple[str, ...]) -> Runtime:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == text:
            return _load(entry)
    engine = _engine_class(PurePath(argv[0]).name)
    if engine is None:
        raise UnknownRuntimeError(
            f"The runtime {brief(text)} is not known.",
            remedy='Write "docker", "podman", "kubernetes", a path to a program of theirs, or the '
            f"name of an entry point in the group {ENTRY_POINT_GROUP!r}.",
        )
    return engine(EngineCommand(argv))


def _load(entry: EntryPoint) -> Runtime:
    try:
        made = entry.load()()
    except Exception as error:
        raise UnknownRuntimeError(
            f"The runtime {entry.name!r} ({entry.value}) could not be loaded: {error!r}."
        ) from error
    if not isinstance(made, Runtime):
        raise UnknownRuntimeError(
            f"The runtime {entry.name!r} ({entry.value}) is a {type(made).__name__}, "
            "not a runtimes.Runtime."
        )
    return made


def _engine_class(binary: str) -> type[ContainerEngine | KubernetesRuntime] | None:
    """Find the engine by the binary's name, such as ``podman-remote`` or ``docker.exe``."""
    for name, engine in _BUILT_IN.items():
        if binary == name or binary.startswith((f"{name}-", f"{name}.")):
            return engine
    return None
