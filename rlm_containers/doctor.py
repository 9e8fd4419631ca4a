"""Finds out whether sandboxes work on this machine, and what to do where they do not."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from rlm_containers.errors import (
    ConfigError,
    ContainersError,
    ContainerStartError,
    EngineNotFoundError,
    UnknownRuntimeError,
    UnsupportedByEngineError,
)
from rlm_containers.options import (
    SandboxOptions,
    check_config,
    config_path,
    configured_options,
    unknown_variables,
)
from rlm_containers.sandbox import Sandbox
from rlm_containers.state import LABEL, make_private, workspaces_directory
from runtimes import EngineInfo, Runtime, get_runtime, runtime_names

__all__ = ["Check", "CheckStatus", "Diagnosis", "EngineReport", "diagnose"]

#: ``"warning"``: it works, but not as well as it could. ``"skipped"``: it could not be tried.
CheckStatus = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: the result.
        detail: what was found.
        remedy: what to do about it, if anything.
    """

    name: str
    status: CheckStatus
    detail: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """The checks of one engine.

    Attributes:
        runtime: the engine's name, as for ``Sandbox(runtime=…)``.
        checks: in the order in which they were made. The first that fails may be the last.
    """

    runtime: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the engine is installed and no check of it failed."""
        return all(check.status != "failed" for check in self.checks) and self.installed

    @property
    def tried(self) -> bool:
        """Whether a cell has run on the engine."""
        return any(check.name == "cell" and check.status == "ok" for check in self.checks)

    @property
    def installed(self) -> bool:
        """Whether the engine's program is on this machine."""
        return self.checks[0].status != "skipped"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The checks of this machine and its engines.

    Attributes:
        host: checks that concern no engine.
        engines: a report for each engine.
        named: whether the caller has named the engines.
    """

    host: tuple[Check, ...]
    engines: tuple[EngineReport, ...]
    named: bool

    @property
    def ok(self) -> bool:
        """Whether sandboxes work: on all engines that were named, or on any if none was."""
        works = [engine.ok for engine in self.engines]
        fine = all(works) if self.named else any(works)
        return fine and all(check.status != "failed" for check in self.host)


def diagnose(
    runtimes: Iterable[str] = (),
    *,
    image: str | None = None,
    pull: bool = False,
    on_check: Callable[[str, Check], None] | None = None,
) -> Diagnosis:
    """Check this machine and its engines, and try each engine with a sandbox.

    Args:
        runtimes: the engines, as for ``Sandbox(runtime=…)``; none for all that may be here.
        image: the trial's image; ``None`` for the configured one.
        pull: whether to pull an image that is missing. Otherwise there is no trial without it.
        on_check: called after each check with the engine's name, or ``"host"``, and the check.

    Returns:
        All checks. An engine that does not work is no exception.
    """
    image = image or _configured().image
    names = tuple(runtimes)

    def collect(where: str, checks: Iterator[Check]) -> tuple[Check, ...]:
        made = []
        for check in checks:
            made.append(check)
            if on_check is not None:
                on_check(where, check)
        return tuple(made)

    return Diagnosis(
        host=collect("host", _check_host()),
        engines=tuple(
            EngineReport(
                runtime=name,
                checks=collect(name, _check_engine(name, image, pull, bool(names))),
            )
            for name in names or _all_names()
        ),
        named=bool(names),
    )


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status="ok", detail=detail)


def _warning(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, status="warning", detail=detail, remedy=remedy)


def _failed(name: str, detail: str, remedy: str) -> Check:
    return Check(name=name, status="failed", detail=detail, remedy=remedy)


def _error(name: str, error: ContainersError) -> Check:
    return _failed(name, error.what, error.remedy)


# The host

#: Contexts and saved variables soon use up less free space than this, in bytes.
_LITTLE_SPACE = 1024**3


def _check_host() -> Iterator[Check]:
    yield _ok("python", f"{platform.python_version()} ({sys.executable})")
    yield _check_config()
    yield _check_workspaces()
    try:
        yield _ok("rlms", metadata.version("rlms"))
    except metadata.PackageNotFoundError:
        yield Check(
            name="rlms",
            status="skipped",
            detail="not installed; only `rlm-containers ask` and RLM objects need it",
            remedy="pip install 'rlm-containers[rlms]'",
        )


def _check_config() -> Check:
    try:
        check_config()
        unknown = unknown_variables()
    except ConfigError as error:
        return _error("config", error)
    if unknown:
        return _warning(
            "config",
            f"these variables set no option: {', '.join(unknown)}",
            "Are these variables misspelt? `rlm-containers config show` lists the options.",
        )
    path = config_path()
    return _ok("config", str(path) if path.exists() else "none; all defaults")


def _check_workspaces() -> Check:
    directory = workspaces_directory()
    try:
        make_private(directory)
        free = shutil.disk_usage(directory).free
        writable = os.access(directory, os.W_OK)
    except OSError as error:
        return _failed(
            "workspaces",
            f"{directory} cannot be made: {error.strerror}",
            "Set XDG_CACHE_HOME to a directory that can be written.",
        )
    detail = f"{directory}, {free / 1024**3:.1f} GiB free"
    if not writable:
        remedy = "Make it writable, or set XDG_CACHE_HOME to a directory that is."
        return _failed("workspaces", detail, remedy)
    if free < _LITTLE_SPACE:
        remedy = "Make room: contexts and saved variables are kept there."
        return _warning("workspaces", detail, remedy)
    return _ok("workspaces", detail)


def _configured() -> SandboxOptions:
    try:
        return configured_options({})
    except ConfigError:  # _check_config() reports it
        return SandboxOptions()


def _all_names() -> tuple[str, ...]:
    configured = _configured().runtime
    named = [configured] if isinstance(configured, str) else []
    return tuple(dict.fromkeys([*named, *runtime_names()]))


# Engines


def _check_engine(name: str, image: str, pull: bool, wanted: bool) -> Iterator[Check]:
    try:
        start = time.perf_counter()
        runtime = get_runtime(name)
        info = runtime.info()
    except (EngineNotFoundError, UnknownRuntimeError) as error:
        # An engine that the caller did not name may be missing.
        status: CheckStatus = "failed" if wanted else "skipped"
        yield Check(name="found", status=status, detail=error.what, remedy=error.remedy)
        return
    except ContainersError as error:
        yield _ok("found", _program(name))
        yield _error("version" if isinstance(error, UnsupportedByEngineError) else "answers", error)
        return
    took = time.perf_counter() - start
    yield _ok("found", _program(name))
    yield _ok("answers", f"in {took * 1000:.0f} ms")
    yield _ok("version", f"{info.engine} {info.version_text}")
    root = "rootless" if info.rootless else "rootful"
    yield _ok("root", f"{root}, cgroups v{info.cgroup_version}")
    yield _ok("SELinux", "on; directories are given labels" if info.selinux else "off")
    if info.remote:
        yield _ok("here", "no: the engine is remote, on another machine or in a virtual one")
    try:
        missing = runtime.missing_permissions()
        if missing:
            yield _failed(
                "permissions",
                f"this user may not {', '.join(missing)}",
                "docs/howto/kubernetes.md has the role that is enough.",
            )
            return
        if missing is not None:
            yield _ok("permissions", "all that sandboxes need")
        present = runtime.pulls_at_start or runtime.image_exists(image)
        if not present and pull:
            runtime.pull(image)
            present = True
    except ContainersError as error:
        yield _error("image", error)
        return
    if not present:
        yield _warning(
            "image",
            f"{image} is not here; the first sandbox will pull it",
            f"`rlm-containers doctor --pull` fetches it now, and tries it. "
            f"Or name one that is here: `{name} images`.",
        )
        yield Check(name="cell", status="skipped", detail="there is no image to try it with")
        return
    pulled = ", which is pulled where it is missing" if runtime.pulls_at_start else ""
    yield _ok("image", f"{image}{pulled}")
    yield from _Trial(runtime, info, image).checks()


def _program(name: str) -> str:
    """Find the path of an engine's program; a name may have arguments."""
    try:
        words = shlex.split(name)
    except ValueError:
        words = [name]
    return shutil.which(name) or shutil.which(words[0]) or name


# The trial of an engine

#: The limits of the trial's container: far more than an interpreter needs.
_LIMITS = {"memory": 256 * 1024**2, "pids": 128}

#: The number of cells that are timed.
_CELLS = 20

#: Seconds until the engine must have removed the container.
_REMOVE_TIMEOUT = 5.0

# Prints the limits in force, as cgroups v2 and v1 have them.
_SHOW_LIMITS = """\
for _names in (("memory.max", "memory/memory.limit_in_bytes"), ("pids.max", "pids/pids.max")):
    for _name in _names:
        try:
            with open("/sys/fs/cgroup/" + _name) as _file:
                print(_file.read().strip())
                break
        except OSError:
            pass
    else:
        print("unknown")
"""

_DELEGATION = "https://rootlesscontaine.rs/getting-started/common/cgroup2/"


class _Trial:
    """Starts a sandbox on an engine, tries it and closes it.

    Args:
        runtime: the engine.
        info: the engine's description of itself.
        image: an image in the engine's store.
    """

    def __init__(self, runtime: Runtime, info: EngineInfo, image: str) -> None:
        self._runtime = runtime
        self._info = info
        self._image = image

    def checks(self) -> Iterator[Check]:
        """Make the checks. The sandbox is closed before the last one is yielded."""
        limits = {n: value for n, value in _LIMITS.items() if n not in self._info.unenforced}
        refused: ContainersError | None = None
        start = time.perf_counter()
        try:
            try:
                box = self._sandbox(limits).start()
            except ContainerStartError as error:
                if not limits:
                    raise
                refused = error
                box = self._sandbox({}).start()
        except ContainersError as error:
            yield _error("start", error)
            return
        took = time.perf_counter() - start
        try:
            yield _ok("start", f"in {took:.2f} s, Python {box.python_version}")
            yield self._cell(box)
            yield self._workspace(box)
            yield self._files()
            yield self._limits(box, refused)
            yield self._llm_query(box)
        except ContainersError as error:
            yield _error("cell", error)
        finally:
            # Before the last check is yielded: the caller may not ask for another one.
            removal = self._close(box)
        yield removal

    def _sandbox(self, limits: Mapping[str, int]) -> Sandbox:
        return Sandbox(
            self._image,
            runtime=self._runtime,
            lm=lambda prompt: f"pong: {prompt}",
            memory=limits.get("memory"),
            pids=limits.get("pids"),
            pool=None,
        )

    def _cell(self, box: Sandbox) -> Check:
        box.execute("x = 1")  # the first cell waits for imports of the interpreter
        times = [box.execute("x = 1").execution_time for _ in range(_CELLS)]
        result = box.execute("print(6 * 7)")
        if (result.status, result.stdout) != ("ok", "42\n"):
            return _failed(
                "cell",
                f"it ended with {result.status!r}: {result.stderr.strip()}",
                "Is the Python in the image complete? Try another image.",
            )
        return _ok("cell", f"{statistics.median(times) * 1000:.2f} ms for `x = 1`")

    def _workspace(self, box: Sandbox) -> Check:
        box.load("context", "text")
        code = "with open('doctor.txt', 'w') as _file: _file.write(context)"
        result = box.execute(code)
        if result.status == "ok":
            return _ok("workspace", "can be read and written")
        return _failed(
            "workspace",
            f"the container cannot write to it: {result.stderr.strip()}",
            "With SELinux see `ausearch -m avc -ts recent`. "
            "XDG_CACHE_HOME moves it to another file system.",
        )

    def _files(self) -> Check:
        if self._runtime.shares_files is False:
            return _ok(
                "files",
                "not shared: its containers do not see this machine's. Workspaces are in their "
                "memory, files go through the pipe, and mounts=… cannot be used",
            )
        return _ok("files", "shared: its containers can see this machine's")

    def _limits(self, box: Sandbox, refused: ContainersError | None) -> Check:
        if self._info.unenforced:
            reasons = "; ".join(dict.fromkeys(self._info.unenforced.values()))
            return _warning(
                "limits",
                f"not enforced: {', '.join(self._info.unenforced)} ({reasons})",
                "Boot with cgroups v2 (systemd.unified_cgroup_hierarchy=1), or use a "
                "rootful engine."
                if self._info.cgroup_version == 1
                else "Go without, or use another engine."
                if not self._info.rootless
                else f"Have the controllers delegated to the user: {_DELEGATION}",
            )
        if refused is not None:
            return _warning(
                "limits",
                f"the engine starts containers only without limits: {refused.what}",
                f"See what `{self._runtime.name} info` says of cgroups. {_DELEGATION}",
            )
        found = box.execute(_SHOW_LIMITS).stdout.split()
        expected = [str(limit) for limit in _LIMITS.values()]
        if found == expected:
            return _ok("limits", "memory and processes are limited")
        if "unknown" in found:
            return _ok("limits", "memory and processes are limited, but cells cannot see it")
        return _warning(
            "limits",
            f"not in force: asked for {' and '.join(expected)}, got {' and '.join(found)}",
            f"See what `{self._runtime.name} info` says of cgroups.",
        )

    def _llm_query(self, box: Sandbox) -> Check:
        result = box.execute("print(llm_query('ping'))")
        if result.stdout != "pong: ping\n":
            return _failed(
                "llm_query",
                f"no answer came: {(result.stdout + result.stderr).strip()}",
                "Please report this, with the output of `rlm-containers doctor -vv`.",
            )
        if box.lm_route == "http":
            return _ok("llm_query", "over the network, through the proxy on this host")
        route = self._runtime.host_route()
        if route is None:
            return _ok(
                "llm_query",
                "over the container's pipe: this engine's containers cannot reach this host",
            )
        return _warning(
            "llm_query",
            f"over the container's pipe: the container does not reach {route.bind}",
            "llm_query() works, but cells cannot send requests to the proxy. Let the firewall "
            f"accept connections from containers to {route.bind} (ufw allow in on docker0; "
            "firewall-cmd --zone=trusted --add-interface=docker0).",
        )

    def _close(self, box: Sandbox) -> Check:
        try:
            box.close()
            deadline = time.monotonic() + _REMOVE_TIMEOUT
            while box.name in {c.name for c in self._runtime.find({LABEL: str(os.getpid())})}:
                if time.monotonic() > deadline:
                    return _failed(
                        "clean-up",
                        f"the container {box.name} is still there",
                        f"Remove it: `{self._runtime.name} rm -f {box.name}`.",
                    )
                time.sleep(0.1)
        except ContainersError as error:
            return _error("clean-up", error)
        return _ok("clean-up", "nothing is left")
