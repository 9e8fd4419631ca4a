"""Options that contradict each other: the error names both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox, SandboxOptions
from rlm_containers.errors import OptionError
from rlm_containers.options import set_by_arguments

STRICT = {"isolation": "strict"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        # An option and an argument that set the same
        ({"network": "none", "run_args": ["--network=host"]}, ("network='none'", "--network")),
        ({"network": "none", "run_args": ["--network", "none"]}, ("network='none'", "--network")),
        ({"network": "bridge", "run_args": ["--net=x"]}, ("network='bridge'", "--net")),
        ({"network": "internal", "run_args": ["--net", "x"]}, ("network='internal'", "--net")),
        ({"user": "1000", "run_args": ["--user=0"]}, ("user='1000:1000'", "--user")),
        ({"user": "1000", "run_args": ["-u", "0"]}, ("user='1000:1000'", "-u")),
        ({"user": "1000", "run_args": ["-u0"]}, ("user='1000:1000'", "-u")),
        ({"memory": "1g", "run_args": ["--memory=2g"]}, ("memory=1073741824", "--memory")),
        ({"memory": "1g", "run_args": ["-m", "2g"]}, ("memory=1073741824", "-m")),
        ({"memory": "1g", "run_args": ["--memory-swap=-1"]}, ("memory=", "--memory-swap")),
        ({"cpus": 1, "run_args": ["--cpus=2"]}, ("cpus=1", "--cpus")),
        ({"cpus": 1, "run_args": ["--cpu-quota=2000"]}, ("cpus=1", "--cpu-quota")),
        ({"pids": 99, "run_args": ["--pids-limit=-1"]}, ("pids=99", "--pids-limit")),
        ({"disk": "1g", "run_args": ["--storage-opt", "size=2g"]}, ("disk=", "--storage-opt")),
        ({"gpus": "all", "run_args": ["--gpus=1"]}, ("gpus=", "--gpus")),
        # Strict isolation, and what undoes it
        ({**STRICT, "network": "bridge"}, ('isolation="strict"', 'network="bridge"')),
        ({**STRICT, "network": "internal"}, ('isolation="strict"', 'network="internal"')),
        ({**STRICT, "user": "0"}, ('isolation="strict"', 'user="0:0"')),
        ({**STRICT, "user": "0:1000"}, ('isolation="strict"', 'user="0:1000"')),
        ({**STRICT, "mounts": ["/:/tmp"]}, ('isolation="strict"', "/tmp")),
        *(
            ({**STRICT, "run_args": arguments}, ('isolation="strict"', arguments[0].split("=")[0]))
            for arguments in (
                ["--privileged"],
                ["--privileged=true"],
                ["--cap-add=NET_ADMIN"],
                ["--cap-add", "ALL"],
                ["--network=none"],
                ["--net", "host"],
                ["--read-only=false"],
                ["--read-only-tmpfs"],
                ["--security-opt=seccomp=unconfined"],
                ["--security-opt", "label=disable"],
                ["--security-opt=no-new-privileges=false"],
                ["--security-opt=no-new-privileges:false"],
                ["--pid=host"],
                ["--ipc", "host"],
                ["--userns=host"],
                ["--user=0"],
                ["--user", "root:root"],
                ["--volume=/:/host"],
                ["-v", "/:/host"],
                ["--mount", "type=bind,source=/,target=/host"],
                ["--device=/dev/kvm"],
            )
        ),
    ],
    ids=str,
)
def test_contradictions(options: dict[str, Any], names: tuple[str, str]) -> None:
    with pytest.raises(OptionError, match="contradict each other") as caught:
        Sandbox(**options)
    for name in names:
        assert name in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize(
    "options",
    [
        # Arguments may set what no option sets; defaults give way.
        {"run_args": ["--network=host", "--user=0", "--memory=1g", "-m", "1g", "--cpus=1"]},
        {"run_args": ["--pids-limit=7", "--storage-opt=size=1g", "--gpus=all", "--privileged"]},
        {"memory": None, "pids": None, "run_args": ["--memory=1g", "--pids-limit=7"]},
        {**STRICT, "network": "none"},
        {**STRICT, "memory": "1g", "cpus": 1, "user": "1000", "disk": "1g", "env": {"A": "b"}},
        {**STRICT, "run_args": ["--hostname=x", "--security-opt=seccomp=mine.json", "--pid=x"]},
        {**STRICT, "run_args": ["--tmpfs", "/scratch:size=1m", "--privileged=false"]},
        {**STRICT, "run_args": ["--runtime=runsc", "--user=1000", "--read-only"]},
    ],
    ids=str,
)
def test_options_that_do_not_contradict_each_other(options: dict[str, Any]) -> None:
    SandboxOptions(**options)


def test_values_of_arguments_are_not_read_as_arguments() -> None:
    assert set_by_arguments(["--label", "x=--memory", "--env=A=-m", "image", "name"]) == {}
    assert set_by_arguments(["-m2g", "--net", "x"]) == {"memory": "-m", "network": "--net"}


def test_strict_isolation_allows_a_mount_below_tmp(tmp_path: Path) -> None:
    SandboxOptions(isolation="strict", mounts=[f"{tmp_path}:/tmp/data"])  # type: ignore[arg-type]
