"""Whether containers work on this machine, and what to do where they do not."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata

from rlm_containers.diagnosis import Check, CheckStatus, Diagnosis, EngineReport
from rlm_containers.doctor_trial import Trial
from rlm_containers.errors import (
    ConfigError,
    ContainersError,
    EngineNotFoundError,
    UnknownRuntimeError,
    UnsupportedByEngineError,
)
from rlm_containers.options import (
    DEFAULT_IMAGE,
    check_config,
    config_path,
    configured_options,
    unknown_variables,
)
from rlm_containers.state import workspaces_directory
from runtimes import EngineInfo, get_runtime
from runtimes.detect import runtime_names

__all__ = ["Check", "CheckStatus", "Diagnosis", "EngineReport", "diagnose"]

#: Less free space than this is soon used up: bytes.
_LITTLE_SPACE = 1024**3


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
    yield from Trial(runtime, info, image).checks()


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
