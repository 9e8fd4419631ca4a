"""Runtimes: what an engine says of itself, and how it is found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from runtimes import Runtime, get_runtime
from tests.support import Engine, printed


def test_info_says_what_the_engine_says(engine: Engine) -> None:
    runtime = get_runtime(engine.runtime)
    info = runtime.info()
    assert info.engine == engine.runtime
    if engine.runtime == "docker":
        raw = json.loads(engine.run("info", "--format={{json .}}").stdout)
        version, cgroups = raw["ServerVersion"], raw["CgroupVersion"]
        rootless = any("rootless" in option for option in raw["SecurityOptions"])
    else:
        raw = json.loads(engine.run("info", "--format=json").stdout)
        version, cgroups = raw["version"]["Version"], raw["host"]["cgroupVersion"]
        rootless = raw["host"]["security"]["rootless"]
    assert version.startswith(info.version_text)
    assert info.version >= (4,)
    assert str(info.cgroup_version) in cgroups
    assert info.rootless == rootless == (engine.name == "podman-rootless")
    assert not info.remote
    assert runtime.info() is info


# Finding it


@pytest.mark.parametrize("form", ["name", "path", "with arguments", "object", "environment"])
def test_how_to_name_it(engine: Engine, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.which(engine.runtime)
    assert path
    forms: dict[str, str | Runtime | None] = {
        "name": engine.runtime,
        "path": path,
        "with arguments": f"{engine.runtime} --log-level=error",
        "object": get_runtime(engine.runtime),
        "environment": None,
    }
    found = forms[form]
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", engine.runtime)
    assert get_runtime(found).name == engine.runtime
    with Sandbox(engine.image(), runtime=found) as box:
        assert printed(box, "print('on')") == "on\n"


def test_podman_that_is_called_docker(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.runtime != "podman":
        pytest.skip("the package podman-docker calls podman, no other engine")
    shim = tmp_path / "docker"
    shim.write_text(f"""#!/bin/sh
echo 'Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.' >&2
exec {shutil.which("podman")} "$@"
""")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Sandbox(engine.image(), runtime="docker") as box:
        assert printed(box, "print('on')") == "on\n"
