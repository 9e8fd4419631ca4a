"""Derived images: packages, Dockerfiles, what reaches a build, and what stays out of the image."""

from __future__ import annotations

import json
import os
import secrets
import ssl
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import ImageBuildError, OptionError
from rlm_containers.images import derive_image, list_images
from rlm_containers.images.cache import DERIVED, LABEL
from rlm_containers.images.recipe import read_recipe
from runtimes import get_runtime
from tests.support import Engine, eventually, printed, processes

#: What may be in no image. The host's settings have it in a password, a proxy and a certificate.
SECRET = f"s3cret{secrets.token_hex(6)}"

_BUILD = """\
import json, sys
from rlm_containers.images import derive_image
from rlm_containers.images import list_images
from rlm_containers.images.recipe import read_recipe
from runtimes import get_runtime
runtime, image, options = json.loads(sys.argv[1])
lines = []
name = derive_image(get_runtime(runtime), image, read_recipe(**options), on_line=lines.append)
print(json.dumps([name, len(lines)]))
"""


@dataclass
class Builds:
    """Images that a test derives, to be removed at its end."""

    engine: Engine
    made: set[str] = field(default_factory=set)

    def derive(self, image: str | None = None, **options: Any) -> tuple[str, list[str]]:
        """Derive an image, asking the engine; its name and the log of its build, if there was."""
        lines: list[str] = []
        recipe = read_recipe(**options)
        assert recipe is not None
        runtime = get_runtime(self.engine.runtime)
        image = image or self.engine.image()
        name = derive_image(runtime, image, recipe, on_line=lines.append, again=True)
        self.made.add(name)
        return name, lines

    def in_a_process(self, **options: Any) -> subprocess.Popen[str]:
        """Derive an image in another process, which prints its name and the length of the log."""
        told = json.dumps([self.engine.runtime, self.engine.image(), options])
        return subprocess.Popen(
            (sys.executable, "-c", _BUILD, told), stdout=subprocess.PIPE, text=True
        )

    def result(self, process: subprocess.Popen[str]) -> tuple[str, int]:
        """What such a process found."""
        output, _ = process.communicate(timeout=300)
        name, lines = json.loads(output)
        self.made.add(name)
        return name, lines

    def remove(self) -> None:
        for name in self.made:
            self.engine.run("rmi", "--force", name, check=False)


@pytest.fixture(scope="module")
def module_builds(engine: Engine) -> Iterator[Builds]:
    builds = Builds(engine)
    yield builds
    builds.remove()


@pytest.fixture
def builds(engine: Engine) -> Iterator[Builds]:
    builds = Builds(engine)
    yield builds
    builds.remove()


def unique() -> str:
    """A Dockerfile that nobody has built before, and that builds in no time."""
    return f"ENV MARK={secrets.token_hex(8)}\n"


@dataclass(frozen=True)
class Derived:
    """The image with six in it, that the tests share."""

    name: str
    log: list[str]


@pytest.fixture(scope="module")
def derived(module_builds: Builds, tmp_path_factory: pytest.TempPathFactory) -> Derived:
    """Built with settings of pip's that an image must not hold, on a network that needs them."""
    bundle = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    certificates = tmp_path_factory.mktemp("settings") / "ca.pem"
    certificates.write_text((Path(bundle).read_text() if bundle else "") + f"# {SECRET}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CERT", str(certificates))
        # Nothing listens there: pip says where it looked, and goes on.
        patch.setenv("PIP_EXTRA_INDEX_URL", f"http://user:{SECRET}@127.0.0.1:9/simple")
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("FTP_PROXY", f"http://user:{SECRET}@127.0.0.1:9")
        return Derived(*module_builds.derive(packages=["six"]))


def test_packages_can_be_imported(engine: Engine, derived: Derived) -> None:
    with Sandbox(engine.image(), runtime=engine.runtime, packages=["six"]) as box:
        assert printed(box, "import six; print(six.moves.range(3))") == "range(0, 3)\n"
    assert derived.name.startswith(f"{DERIVED}:")


def test_the_settings_of_the_host_reach_the_build(derived: Derived) -> None:
    log = "\n".join(derived.log)
    # It could not have been downloaded without the certificates, where the network needs them.
    assert "127.0.0.1:9/simple" in log
    assert SECRET not in log


def test_no_setting_of_the_host_is_in_the_image(
    engine: Engine, derived: Derived, tmp_path: Path
) -> None:
    engine.run("save", "--output", str(tmp_path / "image.tar"), derived.name)
    looked = 0
    with tarfile.open(tmp_path / "image.tar") as image:
        for member in image:
            if (file := image.extractfile(member)) is not None:
                looked += 1
                assert SECRET.encode() not in file.read(), member.name
    assert looked > 3
    history = engine.run("history", "--no-trunc", derived.name).stdout
    assert SECRET not in history + engine.run("inspect", derived.name).stdout
    # What a step has, unlike what is copied, is not even there when it runs.
    found = "/run/secrets/pip.conf", "/run/secrets/ca.pem", "/etc/pip.conf"
    listed = engine.run("run", "--rm", derived.name, "sh", "-c", f"ls -d {' '.join(found)} || true")
    assert listed.stdout == ""


def test_a_later_process_finds_it(builds: Builds, derived: Derived) -> None:
    assert builds.result(builds.in_a_process(packages=["six"])) == (derived.name, 0)
    builds.made.clear()  # the fixture's


def test_it_is_labelled_and_in_the_index(engine: Engine, derived: Derived) -> None:
    raw = json.loads(engine.run("image", "inspect", derived.name).stdout)[0]
    assert raw["Config"]["Labels"][LABEL] == derived.name.rpartition(":")[2]
    (entry,) = [
        entry for entry in list_images([get_runtime(engine.runtime)]) if entry.name == derived.name
    ]
    assert (entry.kind, entry.origin) == ("built", f"{engine.image()} + six")
    assert 0 < entry.size <= raw["Size"]


def test_two_processes_at_once_build_once(builds: Builds) -> None:
    text = unique()
    both = [builds.in_a_process(dockerfile=text) for _ in range(2)]
    (name, first), (other, second) = (builds.result(process) for process in both)
    assert name == other
    assert sorted((first > 0, second > 0)) == [False, True]


def test_a_package_that_does_not_exist_is_named(engine: Engine) -> None:
    name = f"no-such-package-{secrets.token_hex(4)}"
    with pytest.raises(ImageBuildError, match=f"pip finds no {name}") as caught:
        Sandbox(engine.image(), runtime=engine.runtime, packages=[name]).start()
    assert "No matching distribution found" in caught.value.remedy
    assert "No matching distribution found" in caught.value.stderr


def test_an_image_without_what_it_takes(engine: Engine) -> None:
    with pytest.raises(ImageBuildError, match="package manager"):
        Sandbox(engine.image(), runtime=engine.runtime, system_packages=["git"]).start()
    with pytest.raises(ImageBuildError, match="Python"):
        Sandbox(engine.image_without_python(), runtime=engine.runtime, packages=["six"]).start()


def wheel(directory: Path) -> Path:
    """A package in a file of this host, which needs no index."""
    path = directory / "tiny_thing-1.0-py3-none-any.whl"
    info = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_thing.py", "value = 'from a wheel'\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "tiny_thing.py,,\n")
    return path


def test_a_dockerfile_with_a_wheel_on_top(engine: Engine, builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("hello\n")
    mark = secrets.token_hex(4)
    (tmp_path / "Dockerfile").write_text(
        f"FROM ${{BASE_IMAGE}}\nCOPY greeting /srv/greeting\nENV MARK={mark}\nUSER 1234\n"
    )
    options: dict[str, Any] = {
        "dockerfile": str(tmp_path / "Dockerfile"),
        "packages": [str(wheel(tmp_path))],
    }
    name, _ = builds.derive(**options)
    with Sandbox(engine.image(), runtime=engine.runtime, **options) as box:
        shown = printed(box, "import os, tiny_thing; print(os.environ['MARK'], tiny_thing.value)")
        assert shown == f"{mark} from a wheel\n"
        assert printed(box, "print(open('/srv/greeting').read())") == "hello\n\n"
    # The packages were installed as root; the image's user is who it was.
    assert json.loads(engine.run("image", "inspect", name).stdout)[0]["Config"]["User"] == "1234"
    below, log = builds.derive(dockerfile=options["dockerfile"])
    assert (below != name, log) == (True, [])


def test_a_file_that_changes_makes_another_image(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("one")
    (tmp_path / "beside").write_text("one")
    (tmp_path / "Dockerfile").write_text(unique() + "COPY data /data\n")
    dockerfile = str(tmp_path / "Dockerfile")
    first, log = builds.derive(dockerfile=dockerfile)
    assert log
    (tmp_path / "beside").write_text("two")
    assert builds.derive(dockerfile=dockerfile) == (first, [])
    (tmp_path / "data").write_text("two")
    second, log = builds.derive(dockerfile=dockerfile)
    assert log
    assert second != first


def test_a_dockerfile_with_a_base_of_its_own(engine: Engine, builds: Builds) -> None:
    text = f"FROM {engine.image()}\n{unique()}"
    # The sandbox's image is not looked for, and not there.
    name, _ = builds.derive("localhost:1/no/such-image:1", dockerfile=text)
    with Sandbox(name, runtime=engine.runtime) as box:
        assert len(printed(box, "import os; print(os.environ['MARK'], end='')")) == 16


def test_a_dockerfile_that_fails(engine: Engine) -> None:
    with pytest.raises(ImageBuildError, match="a Dockerfile could not be added") as caught:
        Sandbox(
            engine.image(),
            runtime=engine.runtime,
            dockerfile="\nRUN echo what went wrong >&2; exit 3\n",
        ).start()
    assert "what went wrong" in caught.value.remedy


def test_what_is_removed_in_the_meantime_is_made_again(engine: Engine, builds: Builds) -> None:
    options = {"runtime": engine.runtime, "dockerfile": unique()}
    name, _ = builds.derive(dockerfile=options["dockerfile"])
    engine.run("rmi", name)
    with Sandbox(engine.image(), **options) as box:  # type: ignore[arg-type]
        assert printed(box, "import os; print('MARK' in os.environ)") == "True\n"


def test_an_image_of_that_name_that_is_another(engine: Engine, builds: Builds) -> None:
    text = unique()
    name, _ = builds.derive(dockerfile=text)
    engine.run("rmi", name)
    engine.run("tag", engine.image(), name)
    again, log = builds.derive(dockerfile=text)
    assert again == name
    assert log


def test_an_interrupted_build_leaves_nothing(engine: Engine) -> None:
    seconds = 5000 + secrets.randbelow(10**6)
    recipe = read_recipe(dockerfile=f"\nRUN echo begun; sleep {seconds}\n")
    assert recipe is not None

    def interrupt(line: str) -> None:
        if line.endswith("begun"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive_image(get_runtime(engine.runtime), engine.image(), recipe, on_line=interrupt)
    assert eventually(lambda: not processes(f"sleep {seconds}"), 20), "the step goes on"
    everything = ["ps", "--all", "--no-trunc", "--format={{.Names}} {{.Command}}"]
    if engine.runtime == "podman":
        everything.append("--external")
    assert eventually(
        lambda: (
            not any(word in engine.run(*everything).stdout for word in (str(seconds), "rlm-build-"))
        ),
        20,
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("packages", ["six numpy"]),
        ("packages", ["--index-url=http://x"]),
        ("packages", ["./no-such.whl"]),
        ("packages", "six"),
        ("requirements", "/no/such/requirements.txt"),
        ("system_packages", ["git; reboot"]),
        ("system_packages", ["--option"]),
        ("dockerfile", "/no/such/Dockerfile"),
    ],
)
def test_what_cannot_be_built_is_said_at_once(engine: Engine, option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=option):
        Sandbox(engine.image(), runtime=engine.runtime, **{option: value})


def clients(engine: Engine) -> list[str]:
    """The command lines on PATH for this engine."""
    found = subprocess.run(
        ("which", "-a", engine.runtime), capture_output=True, text=True, check=True
    )
    return list({os.path.realpath(path): path for path in found.stdout.split()}.values())


def test_requirements_of_a_file(engine: Engine, builds: Builds, tmp_path: Path) -> None:
    wheel(tmp_path)
    (tmp_path / "requirements.txt").write_text("# what we need\n-r more.txt\n")
    (tmp_path / "more.txt").write_text("./tiny_thing-1.0-py3-none-any.whl\n")
    requirements = str(tmp_path / "requirements.txt")
    # Some clients of docker's can use BuildKit, and some cannot; see DockerRuntime.build.
    for client in clients(engine):
        with Sandbox(engine.image(), runtime=client, requirements=requirements) as box:
            assert printed(box, "import tiny_thing; print(tiny_thing.value)") == "from a wheel\n"
        name, log = builds.derive(requirements=requirements)
        assert log == []
        engine.run("rmi", "--force", name)


_HABITS = """
FROM {base}
RUN mkdir -p /app /home/app/.local/{site} /workspace/data \\
 && echo 'app:x:4321:4321::/home/app:/bin/sh' >> /etc/passwd \\
 && echo 'answer = 1' > /app/of_the_app.py \\
 && echo 'answer = 2' > /home/app/.local/{site}/of_the_user.py \\
 && for name in token json dill rlm_guest sitecustomize socket; do \\
    echo 'print("noise"); raise RuntimeError("not this one")' > /app/$name.py; done
ENV PYTHONPATH=/app PYTHONHOME=/nowhere PYTHONWARNINGS=error
USER app
WORKDIR /workspace/data
"""


def test_an_image_with_habits_of_its_own(
    engine: Engine, builds: Builds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "Dockerfile").write_text(
        _HABITS.format(base=engine.image(), site="lib/python3.11/site-packages")
    )
    name, _ = builds.derive(dockerfile=str(tmp_path / "Dockerfile"))
    with Sandbox(name, runtime=engine.runtime) as box:
        code = "import of_the_app, of_the_user\nprint(of_the_app.answer, of_the_user.answer)"
        assert printed(box, code) == "1 2\n"
        assert printed(box, "def f(): return 3\nimport getpass\nprint(bool(getpass.getuser()))")
        assert box.execute("import os; os._exit(1)").lost == ()
        assert printed(box, "print(f())") == "3\n"
    with Sandbox(name, runtime=engine.runtime) as box:
        printed(box, "1")
    (warning,) = [record for record in caplog.records if "Its files there are" in record.message]
    assert f"{name!r} works in /workspace/data" in warning.message
