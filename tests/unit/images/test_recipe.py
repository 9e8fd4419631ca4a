"""Recipes: what their hashes cover, and what their scripts do in a real shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.errors import OptionError
from rlm_containers.images.recipe import PackageLayer, Recipe, read_recipe

BASE = "sha256:0123"


def recipe(**options: Any) -> Recipe:
    found = read_recipe(**options)
    assert found is not None
    return found


def digest(base: str = BASE, **options: Any) -> str:
    return recipe(**options).layers[-1].digest([base])


def test_without_additions_there_is_no_recipe() -> None:
    assert read_recipe() is None
    assert read_recipe(packages=(), system_packages=[]) is None


def test_what_a_hash_depends_on(tmp_path: Path) -> None:
    file = tmp_path / "r.txt"
    file.write_text("six\n")
    digests = [
        digest(packages=["six"]),
        digest(packages=["six", "numpy"]),
        digest(packages=["six==1.16"]),
        digest(packages=["six"], base="sha256:4567"),
        digest(packages=["six"], system_packages=["git"]),
        digest(system_packages=["git"]),
        digest(dockerfile="RUN six\n"),
        digest(dockerfile="RUN git\n"),
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(value) == 20 and value.isalnum() for value in digests)
    # It depends on nothing else.
    assert digest(packages=["numpy", "six"]) == digests[1]
    assert digest(system_packages=["git", "git"]) == digests[5]
    assert digest(requirements=str(file)) == digests[0]
    # A release must not change the hash without a reason, or all images are built again. With a
    # reason, raise recipe._VERSION.
    assert digests[0] == "b40a4dad8be1660e4880"


def test_layers_are_in_order() -> None:
    made = recipe(packages=["six"], system_packages=["git"], dockerfile="RUN x\n")
    assert [type(layer).__name__ for layer in made.layers] == ["DockerfileLayer", "PackageLayer"]
    assert str(made) == "a Dockerfile, six, git"
    assert made.key != recipe(packages=["six"]).key


@pytest.mark.parametrize("name", ["", "-y", "git;reboot", "a b", "$(x)", "a\nb", "ü", "a/b"])
def test_wrong_names_of_system_packages(name: str) -> None:
    with pytest.raises(OptionError, match="^system_packages: "):
        read_recipe(system_packages=[name])


def test_the_images_history_does_not_name_what_is_installed() -> None:
    (layer,) = recipe(packages=["x @ https://user:s3cret@example.org/x.whl"]).layers
    assert isinstance(layer, PackageLayer)
    assert "s3cret" not in layer.script()
    assert "example" not in layer.script()
    (other,) = recipe(packages=["y"]).layers
    assert isinstance(other, PackageLayer)
    assert layer.script() != other.script()


# The script

RECORD = 'printf "%s\\n" "$(basename "$0") $*" >>"$CALLS"; env | sort >"$CALLS.env"\n'


class Build:
    """Runs a build's script on this machine, with programs that only record their calls."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.files = directory / "files"
        self.secrets = directory / "secrets"
        for path in (self.bin, self.files, self.secrets):
            path.mkdir()
        self.calls = directory / "calls"
        for name in ("basename", "env", "sort", "cat", "rm"):
            for folder in ("/bin", "/usr/bin"):
                if Path(folder, name).exists() and not (self.bin / name).exists():
                    (self.bin / name).symlink_to(Path(folder, name))

    def program(self, name: str, script: str = RECORD) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}")
        (self.bin / name).chmod(0o755)

    def run(self, made: Recipe, **environment: str) -> subprocess.CompletedProcess[str]:
        (layer,) = made.layers
        assert isinstance(layer, PackageLayer)
        layer.write(self.files)
        script = f"FILES={self.files} SECRETS={self.secrets}\n{layer.script()}"
        return subprocess.run(
            ("/bin/sh", "-ec", script),
            env={"PATH": str(self.bin), "CALLS": str(self.calls), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        lines = Path(f"{self.calls}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


@pytest.mark.parametrize(
    ("manager", "calls"),
    [
        ("apt-get", ["update", "install --yes --no-install-recommends -- a b+c"]),
        ("apk", ["add --no-cache -- a b+c"]),
        ("dnf", ["install --assumeyes --setopt=install_weak_deps=False -- a b+c", "clean all"]),
        ("microdnf", ["install --assumeyes --setopt=install_weak_deps=0 -- a b+c", "clean all"]),
        ("zypper", ["--non-interactive install --no-recommends -- a b+c", "clean --all"]),
    ],
)
def test_package_managers(manager: str, calls: list[str], build: Build) -> None:
    build.program(manager)
    done = build.run(recipe(system_packages=["b+c", "a"]), HTTP_PROXY="http://proxy:1")
    assert (done.returncode, done.stderr) == (0, "")
    assert build.called == [f"{manager} {call}" for call in calls]
    # Package managers read the variable in small letters only.
    assert build.environment["http_proxy"] == "http://proxy:1"
    assert "https_proxy" not in build.environment


def test_apt_get_uses_the_certificates_and_leaves_none(build: Build) -> None:
    build.program("apt-get", RECORD + 'cat "$APT_CONFIG" >"$CALLS.conf"\n')
    (build.secrets / "ca.pem").write_text("certificates")
    done = build.run(recipe(system_packages=["a"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Acquire::https::CAInfo" in Path(f"{build.calls}.conf").read_text()
    assert not Path("/tmp/rlm-ca.pem").exists()
    assert not Path("/tmp/rlm-apt.conf").exists()


def test_the_build_fails_if_any_program_does(build: Build) -> None:
    build.program("apt-get", RECORD + '[ "$1" != update ] || exit 100\n')
    build.program("python3")
    done = build.run(recipe(system_packages=["a"], packages=["six"]))
    assert done.returncode == 100
    assert build.called == ["apt-get update"]


def test_pip(build: Build) -> None:
    build.program("python3")
    (build.secrets / "ca.pem").write_text("")
    done = build.run(recipe(packages=["six"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert build.called == [
        "python3 -c import pip",
        "python3 -m pip install --requirement requirements.txt",
    ]
    environment = build.environment
    assert environment["PIP_CONFIG_FILE"] == str(build.secrets / "pip.conf")
    assert environment["PIP_CERT"] == str(build.secrets / "ca.pem")
    assert "PIP_CLIENT_CERT" not in environment
    assert Path(environment["PWD"]).resolve() == build.files.resolve()
    assert (build.files / "requirements.txt").read_text() == "six\n"


def test_an_image_without_pip_or_python(build: Build) -> None:
    done = build.run(recipe(packages=["six"]))
    assert (done.returncode, done.stderr) == (1, "rlm-containers: this image has no Python\n")
    build.program("python", RECORD + "[ $# -gt 3 ] || exit 1\n")
    done = build.run(recipe(packages=["six"]))
    assert done.returncode == 1
    assert done.stderr == "rlm-containers: this image has neither pip nor ensurepip\n"
    assert build.called == ["python -c import pip", "python -m ensurepip --default-pip"]
    # If ensurepip works, pip is used.
    build.program("python", RECORD + '[ "$1" != -c ] || exit 1\n')
    done = build.run(recipe(packages=["six"]))
    assert (done.returncode, build.called[-1]) == (
        0,
        "python -m pip install --requirement requirements.txt",
    )


def test_an_image_without_a_package_manager(build: Build) -> None:
    done = build.run(recipe(system_packages=["a"]))
    assert done.returncode == 1
    assert done.stderr == "rlm-containers: this image has no package manager\n"
    assert os.listdir(build.files) == ["install.sh"]
