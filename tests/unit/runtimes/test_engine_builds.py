"""Building, saving and loading: what the engines' command lines are told, and what is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runtimes import BuildSpec, EngineInfo, HostRoute, Runtime
from runtimes.engine import ContainerEngine
from runtimes.errors import (
    EngineCommandError,
    ImageBuildError,
    ImageNotFoundError,
    UnsupportedByEngineError,
)
from tests.unit.engines import FakeCli, docker, fake_docker, fake_podman, podman, podman_info
from tests.unit.guests import LocalRuntime

SECRET = "s3cret-index"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "DOCKER_HOST":
            monkeypatch.delenv(name)


@pytest.fixture
def spec(tmp_path: Path) -> BuildSpec:
    for name in ("files", "private"):
        (tmp_path / name).mkdir()
    (tmp_path / "files" / "requirements.txt").write_text("six\n")
    return BuildSpec(
        tag="localhost/x/derived:1",
        base="python:3.11-slim",
        dockerfile="ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n",
        context=tmp_path / "files",
        directory=tmp_path / "private",
        script="install",
        secrets={"pip.conf": SECRET.encode()},
        labels={"a": "b c"},
        container_labels={"owner": "7"},
    )


def answers(cli: FakeCli) -> None:
    """A build that shows its Dockerfile and its secrets, and a client with BuildKit."""
    for command in ("tag", "untag", "ps"):
        cli.answer(command)
    cli.answer("buildx version", "github.com/docker/buildx v0.13.1\n")
    cat = shutil.which("cat", path="/bin:/usr/bin")
    cli.script(
        "build",
        'for word in "$@"; do case $word in\n'
        f'--file=*) {cat} "${{word#*=}}";;\n'
        f'--secret=*) {cat} "${{word##*src=}}"; echo;;\n'
        "esac; done; exit 0",
    )


def test_a_build(fake: tuple[ContainerEngine, FakeCli], spec: BuildSpec) -> None:
    runtime, cli = fake
    answers(cli)
    log: list[str] = []
    runtime.build(spec, log.append)
    (call,) = cli.called("build")
    assert call[-1] == str(spec.context)
    for word in ("--tag=localhost/x/derived:1", "--label=a=b c"):
        assert word in call
    assert log == [
        "ARG BASE_IMAGE",
        "FROM ${BASE_IMAGE}",
        "RUN --mount=type=bind,target=/run/rlm-build --mount=type=secret,id=pip.conf "
        '["/bin/sh", "-ec", "FILES=/run/rlm-build SECRETS=/run/secrets\\ninstall"]',
        SECRET,
    ]
    # No secret in what every local user can read, nor in a file that others may.
    assert SECRET not in str(cli.calls)
    for path in spec.directory.glob("secret*"):
        assert path.stat().st_mode & 0o077 == 0
    assert SECRET not in repr(spec)


def test_the_user_of_the_image_stays(
    fake: tuple[ContainerEngine, FakeCli], spec: BuildSpec
) -> None:
    runtime, cli = fake
    answers(cli)
    log: list[str] = []
    runtime.build(BuildSpec(**{**vars(spec), "user": "1234:5", "secrets": {}}), log.append)
    assert [line.split(" ")[0] for line in log[2:]] == ["USER", "RUN", "USER"]
    assert log[-1] == "USER 1234:5"


def test_docker_with_buildkit(
    tmp_path: Path, spec: BuildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = fake_docker(tmp_path)
    answers(cli)
    monkeypatch.setenv("BUILDX_BUILDER", "someone-elses")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:s3cret@proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost")
    cli.script("build", 'echo "$DOCKER_BUILDKIT $BUILDX_BUILDER"; exit 0')
    log: list[str] = []
    runtime = docker(cli)
    runtime.build(spec, log.append)
    assert log == ["1 default"]
    (call,) = cli.called("build")
    # By their names: the client has their values in its environment.
    assert "--build-arg=HTTPS_PROXY" in call
    assert "--build-arg=no_proxy" in call
    assert not [word for word in call if "HTTP_PROXY" in word or "s3cret" in word]
    runtime.build(spec)
    assert len(cli.called("buildx")) == 1


@pytest.mark.parametrize(("client", "buildkit"), [("20.10.24+dfsg1", True), ("28.2.2", False)])
def test_whether_docker_has_buildkit(
    client: str, buildkit: bool, tmp_path: Path, spec: BuildSpec
) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("buildx version", stderr="docker: 'buildx' is not a docker command.", exit_code=1)
    cli.answer("version", f"{client}\n")
    cli.script("build", 'echo "$DOCKER_BUILDKIT"; exit 0')
    log: list[str] = []
    # Without a script no container is needed beside it.
    dockerfile = BuildSpec(**{**vars(spec), "script": ""})
    docker(cli).build(dockerfile, log.append)
    assert log == ["1" if buildkit else "0"]
    (call,) = cli.called("build")
    assert bool([word for word in call if "secret" in word]) == buildkit


def test_the_classic_builder_gets_its_files_from_a_container(
    tmp_path: Path, spec: BuildSpec
) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("buildx version", exit_code=1)
    cli.answer("version", "28.2.2\n")
    # It takes what it gets, and stays as long as its input is open.
    cli.script(
        "run", 'read -r size; head -c "$size" >/dev/null; echo ready; cat >/dev/null; exit 0'
    )
    for name in ("head", "cat"):
        found = shutil.which(name, path="/bin:/usr/bin")
        assert found
        (tmp_path / name).symlink_to(found)
    cli.answer("build")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        docker(cli).build(spec)
    (run,), (build,) = cli.called("run"), cli.called("build")
    assert "--label=owner=7" in run
    assert "--cap-drop=ALL" in run
    (name,) = [word.partition("=")[2] for word in run if word.startswith("--name=")]
    assert f"--network=container:{name}" in build
    assert os.listdir(build[-1]) == []  # nothing is sent with the build
    assert SECRET not in str(cli.calls)
    text = (spec.directory / "Dockerfile").read_text()
    assert "--mount" not in text
    assert "SECRETS=/dev/shm/rlm-build/secrets" in text


def test_a_container_beside_a_build_that_does_not_come_up(tmp_path: Path, spec: BuildSpec) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("buildx version", exit_code=1)
    cli.answer("version", "28.2.2\n")
    cli.answer("run", stderr="this image has no Python\n", exit_code=1)
    with pytest.raises(ImageBuildError, match="did not start: this image has no Python"):
        docker(cli).build(spec)
    assert not cli.called("build")


def test_podman_cleans_up_after_a_build_that_fails(tmp_path: Path, spec: BuildSpec) -> None:
    cli = fake_podman(tmp_path)
    answers(cli)
    cli.answer("build", "STEP 1\nSTEP 2\n", stderr="Error: exit status 3\n", exit_code=3)
    cli.answer("ps", "0123\n")
    with pytest.raises(ImageBuildError, match=r"derived:1: Error: exit status 3") as caught:
        podman(cli).build(spec)
    assert caught.value.exit_code == 3
    assert caught.value.stderr.splitlines()[:2] == ["STEP 1", "STEP 2"]
    ((_, base, name),) = cli.called("tag")
    assert base == "python:3.11-slim"
    assert f"--build-arg=BASE_IMAGE={name}" in cli.called("build")[0]
    assert f"--filter=name={name.rpartition('/')[2]}" in cli.called("ps")[0]
    assert cli.called("rm") == [["rm", "--force", "0123"]]
    assert cli.called("untag") == [["untag", name, name]]


def test_podman_with_selinux_labels_what_the_step_reads(tmp_path: Path, spec: BuildSpec) -> None:
    cli = fake_podman(tmp_path, podman_info(security={"selinuxEnabled": True}))
    answers(cli)
    log: list[str] = []
    podman(cli).build(spec, log.append)
    assert f"--volume={spec.context}:/run/rlm-build:ro,z" in cli.called("build")[0]
    assert "type=bind" not in "".join(log)
    assert "type=secret" in "".join(log)


def test_a_build_that_takes_too_long(
    fake: tuple[ContainerEngine, FakeCli], spec: BuildSpec
) -> None:
    runtime, cli = fake
    answers(cli)
    cli.script("build", "echo begun; exec /bin/sleep 1000")
    with pytest.raises(ImageBuildError, match=r"did not end within 0\.5 s") as caught:
        runtime.build(BuildSpec(**{**vars(spec), "timeout": 0.5}))
    assert caught.value.stderr == "begun"


# Saving, loading, removing, listing

IMAGE = {"Id": "sha256:1", "RepoTags": ["a:1"], "Size": 5, "Config": {"Labels": {"k": "v"}}}


def test_images_are_listed_by_their_labels(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    cli.answer("images", "sha256:1\nsha256:2\nsha256:1\n")
    # The second was removed in between.
    cli.answer("image inspect", [IMAGE], stderr="Error: No such image: 2", exit_code=1)
    (record,) = runtime.find_images({"k": "v", "any": ""})
    assert (record.id, record.tags, record.labels) == ("sha256:1", ("a:1",), {"k": "v"})
    (listed,) = cli.called("images")
    assert listed[-2:] == ["--filter=label=k=v", "--filter=label=any"]
    assert cli.called("image", "inspect") == [["image", "inspect", "sha256:1", "sha256:2"]]
    cli.answer("images", "")
    assert runtime.find_images({"k": ""}) == []


def test_what_an_image_is_is_the_same_on_every_engine(
    fake: tuple[ContainerEngine, FakeCli],
) -> None:
    runtime, cli = fake

    def content(**more: object) -> str:
        raw = {
            **IMAGE,
            "Os": "linux",
            "Architecture": "amd64",
            "RootFS": {"Type": "layers", "Layers": ["sha256:a", "sha256:b"]},
            "Config": {"Env": ["A=b"], "Cmd": None, "Labels": {"k": "v"}},
        }
        cli.answer("image inspect", {**raw, **more})
        return runtime.inspect_image("a:1").content

    whole = content()
    assert whole.startswith("sha256:")
    # What engines say differently, or only for themselves.
    assert content(Id="2", RepoTags=[], Size=6, Created="x") == whole
    assert content(Config={"Env": ["A=b"], "Cmd": [], "User": "", "Image": "x"}) == whole
    different = [
        content(Architecture="arm64"),
        content(Variant="v7"),
        content(RootFS={"Layers": ["sha256:a"]}),
        content(Config={"Env": ["A=c"]}),
        content(Config={"Env": ["A=b"], "User": "5"}),
    ]
    assert len({whole, *different}) == 6
    assert content(RootFS={}) == ""


def test_an_image_is_removed_by_its_name(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    cli.answer("rmi")
    runtime.remove_image("a:1")
    assert cli.called("rmi") == [["rmi", "a:1"]]
    for gone in ("Error: No such image: a:1", "Error: a:1: image not known"):
        cli.answer("rmi", stderr=gone, exit_code=1)
        runtime.remove_image("a:1")
    cli.answer("rmi", stderr="conflict: image is being used by 0123\n", exit_code=1)
    with pytest.raises(EngineCommandError, match="is being used by 0123") as caught:
        runtime.remove_image("a:1")
    assert caught.value.remedy


def test_saving(fake: tuple[ContainerEngine, FakeCli], tmp_path: Path) -> None:
    runtime, cli = fake
    cli.answer("image inspect", IMAGE)
    cli.answer("save")
    runtime.save_image("a:1", tmp_path / "file")
    (call,) = cli.called("save")
    assert call[-2:] == [f"--output={tmp_path}/file", "a:1"]
    # podman's own OCI archives are unknown to docker before 25.
    assert ("--format=docker-archive" in call) == (runtime.name == "podman")
    cli.answer("save", stderr="no space left on device", exit_code=1)
    with pytest.raises(EngineCommandError, match="could not save the image: no space left"):
        runtime.save_image("a:1", tmp_path / "file")
    cli.answer("image inspect", stderr="Error: No such image: b", exit_code=1)
    with pytest.raises(ImageNotFoundError):
        runtime.save_image("b:1", tmp_path / "file")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("Loaded image: a:1\n", ["a:1"]),
        ("Loaded image: a:1\nLoaded image: b/c:2\n", ["a:1", "b/c:2"]),
        (
            "Loaded image(s): localhost/a:1,docker.io/library/b:2\n",
            ["localhost/a:1", "docker.io/library/b:2"],
        ),
        ("Loaded image ID: sha256:0123\n", ["sha256:0123"]),
        ("The image a:1 already exists, renaming the old one\nLoaded image: a:1\n", ["a:1"]),
        ("", []),
    ],
)
def test_loading(
    said: str, names: list[str], fake: tuple[ContainerEngine, FakeCli], tmp_path: Path
) -> None:
    runtime, cli = fake
    cli.answer("load", said)
    assert runtime.load_image(tmp_path / "file") == names
    assert cli.called("load") == [["load", f"--input={tmp_path}/file"]]


def test_which_store_it_is(tmp_path: Path) -> None:
    cli = fake_docker(
        tmp_path, {**json.loads(json.dumps({"ServerVersion": "28.0"})), "ID": "AB:CD"}
    )
    assert docker(cli).info().store == "AB:CD"
    info = podman_info()
    info["store"]["graphRoot"] = "/var/lib/containers/storage"
    cli = fake_podman(tmp_path, info)
    store = podman(cli).info().store
    assert store == "/var/lib/containers/storage"


def test_a_runtime_need_not_know_of_any_of_this(tmp_path: Path, spec: BuildSpec) -> None:
    runtime: Runtime = LocalRuntime()
    for call in (
        lambda: runtime.build(spec),
        lambda: runtime.find_images({}),
        lambda: runtime.remove_image("a"),
        lambda: runtime.save_image("a", tmp_path),
        lambda: runtime.load_image(tmp_path),
    ):
        with pytest.raises(UnsupportedByEngineError, match="cannot .* images") as caught:
            call()
        assert "docker or podman" in caught.value.remedy
    assert isinstance(runtime.info(), EngineInfo)
    assert runtime.host_route() is None or isinstance(runtime.host_route(), HostRoute)
