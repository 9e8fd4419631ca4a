"""Whether containers work on this machine, and what to do where they do not."""

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

from rlm_containers.config import check_config, configured_options, unknown_variables
from rlm_containers.configfile import config_path
from rlm_containers.errors import (
    ConfigError,
    ContainersError,
    ContainerStartError,
    EngineNotFoundError,
    UnknownRuntimeError,
    UnsupportedByEngineError,
)
from rlm_containers.options import DEFAULT_IMAGE
from rlm_containers.sandbox import LABEL, Sandbox
from rlm_containers.workspace import workspaces_directory
from runtimes import EngineInfo, Runtime, get_runtime
from runtimes.detect import runtime_names

__all__ = ["Check", "CheckStatus", "Diagnosis", "EngineReport", "diagnose"]

#: ``"warning"``: it works, but not as it could. ``"skipped"``: it could not be tried.
CheckStatus = Literal["ok", "warning", "failed", "skipped"]

#: What the container of the trial is limited to: far more than an interpreter needs.
_LIMITS = {"memory": 256 * 1024**2, "pids": 128}

#: Cells that are timed.
_CELLS = 20

#: Less free space than this is soon used up: bytes.
_LITTLE_SPACE = 1024**3

# A cell that prints the limits that are in force, as cgroups v2 and v1 have them.
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


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: how it is.
        detail: what was found.
        remedy: what to do about it, if there is something.
    """

    name: str
    status: CheckStatus
    detail: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What was found of one engine.

    Attributes:
        runtime: its name, as for ``Sandbox(runtime=…)``.
        checks: in the order in which they were made. After one that failed there may be no more.
    """

    runtime: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether sandboxes work there: nothing failed, and it is installed at all."""
        return all(check.status != "failed" for check in self.checks) and self.installed

    @property
    def tried(self) -> bool:
        """Whether a cell has run there."""
        return any(check.name == "cell" and check.status == "ok" for check in self.checks)

    @property
    def installed(self) -> bool:
        """Whether its program is here."""
        return self.checks[0].status != "skipped"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found on this machine.

    Attributes:
        host: checks that concern no engine.
        engines: a report for each.
        named: whether the caller has named the engines.
    """

    host: tuple[Check, ...]
    engines: tuple[EngineReport, ...]
    named: bool

    @property
    def ok(self) -> bool:
        """Whether sandboxes work: on every engine that was named, or else on any."""
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
    """Look at engines, and try them with a container each.

    Args:
        runtimes: the engines, as for ``Sandbox(runtime=…)``; none for all that may be here.
        image: the image of the trial; ``None`` for the one that is configured.
        pull: whether to fetch it where it is not. Without it there is no trial then.
        on_check: called with the engine's name, or ``"host"``, after each check.

    Returns:
        What was found. What is wrong with an engine is no exception.
    """
    tell = on_check or (lambda engine, check: None)
    image = image or _configured_image()
    names = tuple(runtimes)

    def collect(where: str, checks: Iterator[Check]) -> tuple[Check, ...]:
        made = []
        for check in checks:
            made.append(check)
            tell(where, check)
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


def _check_host() -> Iterator[Check]:
    version = f"{platform.python_version()} ({sys.executable})"
    yield Check(name="python", status="ok", detail=version)
    yield _check_config()
    directory = workspaces_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(directory).free
        writable = os.access(directory, os.W_OK)
    except OSError as error:
        yield Check(
            name="workspaces",
            status="failed",
            detail=f"{directory} cannot be made: {error.strerror}",
            remedy="Set XDG_CACHE_HOME to a directory that can be written.",
        )
    else:
        detail = f"{directory}, {free / 1024**3:.1f} GiB free"
        if not writable:
            remedy = "Make it writable, or set XDG_CACHE_HOME to a directory that is."
            yield Check(name="workspaces", status="failed", detail=detail, remedy=remedy)
        elif free < _LITTLE_SPACE:
            remedy = "Make room: contexts and saved variables are kept there."
            yield Check(name="workspaces", status="warning", detail=detail, remedy=remedy)
        else:
            yield Check(name="workspaces", status="ok", detail=detail)
    try:
        yield Check(name="rlms", status="ok", detail=metadata.version("rlms"))
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
        strange = unknown_variables()
    except ConfigError as error:
        return Check(name="config", status="failed", detail=error.what, remedy=error.remedy)
    path = config_path()
    if strange:
        return Check(
            name="config",
            status="warning",
            detail=f"no option of a sandbox: {', '.join(strange)}",
            remedy="Are these variables misspelt? `rlm-containers config show` lists the options.",
        )
    return Check(
        name="config", status="ok", detail=str(path) if path.exists() else "none; all defaults"
    )


def _all_names() -> tuple[str, ...]:
    try:
        configured = configured_options({}).runtime
    except ConfigError:  # which is reported
        configured = None
    named = [configured] if isinstance(configured, str) else []
    return tuple(dict.fromkeys([*named, *runtime_names()]))


def _configured_image() -> str:
    try:
        return configured_options({}).image
    except ConfigError:  # which is reported
        return DEFAULT_IMAGE


def _check_engine(name: str, image: str, pull: bool, wanted: bool) -> Iterator[Check]:
    try:
        start = time.perf_counter()
        runtime = get_runtime(name)
        info = runtime.info()
    except (EngineNotFoundError, UnknownRuntimeError) as error:
        # One of many that may be here need not be.
        status: CheckStatus = "failed" if wanted else "skipped"
        yield Check(name="found", status=status, detail=error.what, remedy=error.remedy)
        return
    except ContainersError as error:
        yield Check(name="found", status="ok", detail=_program(name))
        what = "version" if isinstance(error, UnsupportedByEngineError) else "answers"
        yield Check(name=what, status="failed", detail=error.what, remedy=error.remedy)
        return
    took = time.perf_counter() - start
    yield Check(name="found", status="ok", detail=_program(name))
    yield Check(name="answers", status="ok", detail=f"in {took * 1000:.0f} ms")
    yield Check(name="version", status="ok", detail=f"{info.engine} {info.version_text}")
    yield _root(info)
    yield _selinux(info)
    if info.remote:
        yield Check(
            name="here",
            status="warning",
            detail="the engine runs on another machine, or in a virtual one",
            remedy="It must see this machine's directories under the same paths.",
        )
    try:
        present = runtime.image_exists(image)
        if not present and pull:
            runtime.pull(image)
            present = True
    except ContainersError as error:
        yield Check(name="image", status="failed", detail=error.what, remedy=error.remedy)
        return
    if not present:
        yield Check(
            name="image",
            status="warning",
            detail=f"{image} is not here; the first sandbox will pull it",
            remedy=f"`rlm-containers doctor --pull` fetches it now, and tries it. "
            f"Or name one that is here: `{name} images`.",
        )
        yield Check(name="cell", status="skipped", detail="there is no image to try it with")
        return
    yield Check(name="image", status="ok", detail=image)
    yield from _Trial(runtime, info, image).checks()


def _program(name: str) -> str:
    try:
        words = shlex.split(name)
    except ValueError:
        words = [name]
    return shutil.which(name) or shutil.which(words[0]) or name


def _root(info: EngineInfo) -> Check:
    detail = "rootless" if info.rootless else "rootful"
    return Check(name="root", status="ok", detail=f"{detail}, cgroups v{info.cgroup_version}")


def _selinux(info: EngineInfo) -> Check:
    detail = "on; directories are given labels" if info.selinux else "off"
    return Check(name="SELinux", status="ok", detail=detail)


class _Trial:
    """A sandbox that is started, tried and closed."""

    def __init__(self, runtime: Runtime, info: EngineInfo, image: str) -> None:
        self._runtime = runtime
        self._info = info
        self._image = image
        #: The limits that the engine says it enforces.
        self._held = {n: value for n, value in _LIMITS.items() if n not in info.unenforced}

    def checks(self) -> Iterator[Check]:
        """What comes of it."""
        refused: ContainersError | None = None
        start = time.perf_counter()
        try:
            try:
                box = self._sandbox(self._held).start()
            except ContainerStartError as error:
                if not self._held:
                    raise
                refused = error
                box = self._sandbox({}).start()
        except ContainersError as error:
            yield Check(name="start", status="failed", detail=error.what, remedy=error.remedy)
            return
        took = time.perf_counter() - start
        try:
            detail = f"in {took:.2f} s, Python {box.python_version}"
            yield Check(name="start", status="ok", detail=detail)
            yield self._cell(box)
            yield self._workspace(box)
            yield self._limits(box, refused)
            yield self._network(box)
        except ContainersError as error:
            yield Check(name="cell", status="failed", detail=error.what, remedy=error.remedy)
        finally:
            # Before the caller sees the last check: it may not ask for one more.
            left = self._close(box)
        yield left

    def _sandbox(self, limits: Mapping[str, int]) -> Sandbox:
        memory, pids = limits.get("memory"), limits.get("pids")
        return Sandbox(self._image, runtime=self._runtime, lm=_answer, memory=memory, pids=pids)

    def _cell(self, box: Sandbox) -> Check:
        box.execute("x = 1")  # the first waits for what the interpreter still imports
        times = [box.execute("x = 1").execution_time for _ in range(_CELLS)]
        result = box.execute("print(6 * 7)")
        if (result.status, result.stdout) != ("ok", "42\n"):
            return Check(
                name="cell",
                status="failed",
                detail=f"it ended with {result.status!r}: {result.stderr.strip()}",
                remedy="Is the Python in the image whole?",
            )
        return Check(
            name="cell", status="ok", detail=f"{statistics.median(times) * 1000:.2f} ms for `x = 1`"
        )

    def _workspace(self, box: Sandbox) -> Check:
        code = "with open('doctor.txt', 'w') as _file: _file.write(context)"
        box.load("context", "text")
        result = box.execute(code)
        if result.status == "ok":
            return Check(name="workspace", status="ok", detail="can be read and written")
        return Check(
            name="workspace",
            status="failed",
            detail=f"the container cannot write to it: {result.stderr.strip()}",
            remedy="With SELinux see `ausearch -m avc -ts recent`. "
            "XDG_CACHE_HOME moves it to another file system.",
        )

    def _limits(self, box: Sandbox, refused: ContainersError | None) -> Check:
        if self._info.unenforced:
            reasons = "; ".join(dict.fromkeys(self._info.unenforced.values()))
            return Check(
                name="limits",
                status="warning",
                detail=f"not enforced: {', '.join(self._info.unenforced)} ({reasons})",
                remedy="Boot with cgroups v2 (systemd.unified_cgroup_hierarchy=1), or use a "
                "rootful engine."
                if self._info.cgroup_version == 1
                else f"Have the controllers delegated to the user: {_DELEGATION}",
            )
        if refused is not None:
            return Check(
                name="limits",
                status="warning",
                detail=f"the engine starts no container with limits: {refused.what}",
                remedy=f"See what `{self._runtime.name} info` says of cgroups. {_DELEGATION}",
            )
        found = box.execute(_SHOW_LIMITS).stdout.split()
        if found == [str(limit) for limit in _LIMITS.values()]:
            return Check(name="limits", status="ok", detail="memory and processes are limited")
        if "unknown" in found:
            detail = "memory and processes are said to be limited; the container does not show it"
            return Check(name="limits", status="ok", detail=detail)
        return Check(
            name="limits",
            status="warning",
            detail="not in force: asked for "
            f"{' and '.join(map(str, _LIMITS.values()))}, got {' and '.join(found)}",
            remedy=f"See what `{self._runtime.name} info` says of cgroups.",
        )

    def _network(self, box: Sandbox) -> Check:
        result = box.execute("print(llm_query('ping'))")
        if result.stdout != "pong: ping\n":
            return Check(
                name="llm_query",
                status="failed",
                detail=f"no answer came: {(result.stdout + result.stderr).strip()}",
                remedy="Please report this, with the output of `rlm-containers doctor -vv`.",
            )
        if box.lm_route == "http":
            detail = "over the network, through the proxy on this host"
            return Check(name="llm_query", status="ok", detail=detail)
        route = self._runtime.host_route()
        if route is None:
            detail = "over the container's pipe: this engine leads no container to its host"
            return Check(name="llm_query", status="ok", detail=detail)
        return Check(
            name="llm_query",
            status="warning",
            detail=f"over the container's pipe: the container does not reach {route.bind}",
            remedy="All works, yet requests to the proxy do not: let the firewall accept "
            f"connections from containers to {route.bind} (ufw allow in on docker0; "
            "firewall-cmd --zone=trusted --add-interface=docker0).",
        )

    def _close(self, box: Sandbox) -> Check:
        try:
            box.close()
            deadline = time.monotonic() + 5.0
            while box.name in {c.name for c in self._runtime.find({LABEL: str(os.getpid())})}:
                if time.monotonic() > deadline:
                    return Check(
                        name="clean-up",
                        status="failed",
                        detail=f"the container {box.name} is still there",
                        remedy=f"Remove it: `{self._runtime.name} rm -f {box.name}`.",
                    )
                time.sleep(0.1)
        except ContainersError as error:
            return Check(name="clean-up", status="failed", detail=error.what, remedy=error.remedy)
        return Check(name="clean-up", status="ok", detail="nothing is left")


def _answer(prompt: str) -> str:
    return f"pong: {prompt}"
