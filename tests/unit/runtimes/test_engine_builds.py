"""Building, saving, loading, removing and listing images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runtimes import BuildSpec, Runtime
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
    """Make a client with BuildKit whose build prints its Dockerfile and its secrets."""
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
    # Neither arguments nor files that others may read hold a secret.
    assert SECRET not in str(cli.calls)
    for path in spec.directory.glob("secret*"):
        assert path.stat().st_mode & 0o077 == 0
    assert SECRET not in repr(spec)


def test_the_image_keeps_its_user(fake: tuple[ContainerEngine, FakeCli], spec: BuildSpec) -> None:
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
    # Only their names: the client has their values in its environment.
    assert "--build-arg=HTTPS_PROXY" in call
    assert "--build-arg=no_proxy" in call
    assert not [word for word in call if "HTTP_PROXY" in word or "s3cret" in word]
    runtime.build(spec)
    assert len(cli.called("buildx")) == 1


@pytest.mark.parametrize(("client", "buildkit"), [("20.10.24+dfsg1", True), ("28.2.2", False)])
def test_detecting_buildkit(client: str, buildkit: bool, tmp_path: Path, spec: BuildSpec) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("buildx version", stderr="docker: 'buildx' is not a docker command.", exit_code=1)
    cli.answer("version", f"{client}\n")
    cli.script("build", 'echo "$DOCKER_BUILDKIT"; exit 0')
    log: list[str] = []
    # Without a script no files need to be served.
    dockerfile = BuildSpec(**{**vars(spec), "script": ""})
    docker(cli).build(dockerfile, log.append)
    assert log == ["1" if buildkit else "0"]
    (call,) = cli.called("build")
    assert bool([word for word in call if "secret" in word]) == buildkit


def test_files_are_served_to_the_classic_builder(tmp_path: Path, spec: BuildSpec) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("buildx version", exit_code=1)
    cli.answer("version", "28.2.2\n")
    # It reads the files, and stays as long as its input is open.
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


def test_serving_files_fails(tmp_path: Path, spec: BuildSpec) -> None:
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


def test_podman_labels_the_context_for_selinux(tmp_path: Path, spec: BuildSpec) -> None:
    cli = fake_podman(tmp_path, podman_info(security={"selinuxEnabled": True}))
    answers(cli)
    log: list[str] = []
    podman(cli).build(spec, log.append)
    assert f"--volume={spec.context}:/run/rlm-build:ro,z" in cli.called("build")[0]
    assert "type=bind" not in "".join(log)
    assert "type=secret" in "".join(log)


def test_a_build_that_times_out(fake: tuple[ContainerEngine, FakeCli], spec: BuildSpec) -> None:
    runtime, cli = fake
    answers(cli)
    cli.script("build", "echo begun; exec /bin/sleep 1000")
    with pytest.raises(ImageBuildError, match=r"did not end within 0\.5 s") as caught:
        runtime.build(BuildSpec(**{**vars(spec), "timeout": 0.5}))
    assert caught.value.stderr == "begun"


# Saving, loading, removing, listing

IMAGE = {"Id": "sha256:1", "RepoTags": ["a:1"], "Size": 5, "Config": {"Labels": {"k": "v"}}}


def test_finding_images_by_labels(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    cli.answer("images", "sha256:1\nsha256:2\nsha256:1\n")
    # The second has been removed in between.
    cli.answer("image inspect", [IMAGE], stderr="Error: No such image: 2", exit_code=1)
    (record,) = runtime.find_images({"k": "v", "any": ""})
    assert (record.id, record.tags, record.labels) == ("sha256:1", ("a:1",), {"k": "v"})
    (listed,) = cli.called("images")
    assert listed[-2:] == ["--filter=label=k=v", "--filter=label=any"]
    assert cli.called("image", "inspect") == [["image", "inspect", "sha256:1", "sha256:2"]]
    cli.answer("images", "")
    assert runtime.find_images({"k": ""}) == []


def test_content_is_the_same_on_every_engine(
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
    # These differ between engines.
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


def test_removing(fake: tuple[ContainerEngine, FakeCli]) -> None:
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
    # docker before 25 cannot read OCI archives.
    assert ("--format=docker-archive" in call) == (runtime.name == "podman")
    cli.answer("save", stderr="no space left on device", exit_code=1)
    with pytest.raises(EngineCommandError, match="could not save the image: no space left"):
        runtime.save_image("a:1", tmp_path / "file")
    # Another process has changed podman's store while it was read.
    lost = "Error: reading blob: locating image with ID: image not known"
    once = f'[ -e "$home/saved" ] && exit 0; touch "$home/saved"; echo "{lost}" >&2; exit 125'
    cli.script("save", once)
    runtime.save_image("a:1", tmp_path / "file")
    cli.answer("save", stderr=lost, exit_code=125)
    with pytest.raises(EngineCommandError, match="image not known"):
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


def test_the_store_of_images(tmp_path: Path) -> None:
    cli = fake_docker(
        tmp_path, {**json.loads(json.dumps({"ServerVersion": "28.0"})), "ID": "AB:CD"}
    )
    assert docker(cli).info().store == "AB:CD"
    info = podman_info()
    info["store"]["graphRoot"] = "/var/lib/containers/storage"
    cli = fake_podman(tmp_path, info)
    store = podman(cli).info().store
    assert store == "/var/lib/containers/storage"


class SmallRuntime(Runtime):
    """A runtime with nothing but the six methods that it must define."""

    name = "small"
    info = LocalRuntime.info
    start_error = LocalRuntime.start_error
    open = LocalRuntime.open
    remove = LocalRuntime.remove
    remove_command = LocalRuntime.remove_command
    find = LocalRuntime.find


def test_a_runtime_may_lack_abilities(tmp_path: Path, spec: BuildSpec) -> None:
    runtime: Runtime = SmallRuntime()
    for call in (
        lambda: runtime.image_exists("a"),
        lambda: runtime.inspect_image("a"),
        lambda: runtime.pull("a"),
        lambda: runtime.build(spec),
        lambda: runtime.find_images({}),
        lambda: runtime.remove_image("a"),
        lambda: runtime.save_image("a", tmp_path),
        lambda: runtime.load_image(tmp_path),
        lambda: runtime.make_internal_network("n", {}),
        lambda: runtime.remove_network("n"),
        lambda: runtime.remove_network_command("n"),
    ):
        with pytest.raises(UnsupportedByEngineError, match="small cannot .*") as caught:
            call()
        assert "docker or podman" in caught.value.remedy
    with pytest.raises(UnsupportedByEngineError, match="has no networks") as caught:
        runtime.check_internal_network()
    assert "none" in caught.value.remedy
    assert runtime.find_networks({}) == []
    assert runtime.host_route() is None
    assert runtime.workspace_user() == (os.getuid(), os.getgid())
    assert runtime.ran_out_of_memory("x", 0.0, None) is None
