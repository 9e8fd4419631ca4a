"""The trial of an engine: a sandbox that is started there, tried and closed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping

from rlm_containers.diagnosis import Check
from rlm_containers.errors import ContainersError, ContainerStartError
from rlm_containers.sandbox import Sandbox
from rlm_containers.state import LABEL
from runtimes import EngineInfo, Runtime

#: What the container of the trial is limited to: far more than an interpreter needs.
_LIMITS = {"memory": 256 * 1024**2, "pids": 128}

#: Cells that are timed.
_CELLS = 20

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


class Trial:
    """A sandbox that is started, tried and closed.

    Args:
        runtime: the engine.
        info: what it says of itself.
        image: the image, which is there already.
    """

    def __init__(self, runtime: Runtime, info: EngineInfo, image: str) -> None:
        self._runtime = runtime
        self._info = info
        self._image = image
        #: The limits that the engine says it enforces.
        self._held = {n: value for n, value in _LIMITS.items() if n not in info.unenforced}

    def checks(self) -> Iterator[Check]:
        """What comes of it. The sandbox is closed before the last of them is given."""
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
