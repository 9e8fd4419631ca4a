"""Tasks of Inspect whose sandboxes are containers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.state import workspaces_directory
from tests.documents import DOCS, run_page
from tests.support import Engine, assert_gone, on_ci

if not on_ci():  # on CI it must be installed
    pytest.importorskip("inspect_ai", reason="pip install 'rlm-containers[inspect-ai]'")

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.agent import react
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import bash_session, text_editor
from inspect_ai.util import (
    ComposeConfig,
    SandboxEnvironmentSpec,
    SandboxUserUnsupportedError,
    sandbox,
)
from inspect_ai.util._sandbox.environment import SandboxUnavailableError

from rlm_containers.errors import OptionError
from rlm_containers.integrations.inspect_ai import ContainerConfig, ContainerSandboxEnvironment
from rlm_containers.integrations.inspect_ai.output import Tail

# Inspect leaves streams of anyio open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function MemoryObject:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def configured(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sandboxes that do not say it use the engine under test."""
    monkeypatch.chdir(tmp_path)  # Inspect would find this repository's Dockerfile
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", engine.runtime)
    monkeypatch.setenv("RLM_CONTAINERS_IMAGE", engine.image())
    # What Inspect's tools look for, and the images of the tests do not have.
    bash, release = tmp_path / "bash", tmp_path / "os-release"
    bash.write_text('#!/bin/sh\n[ "$1" = --login ] && shift\nexec sh "$@"\n')
    bash.chmod(0o755)
    release.write_text("ID=debian\nVERSION_ID=12\n")
    mounts = f"{bash}:/usr/bin/bash,{release}:/etc/os-release"
    monkeypatch.setenv("RLM_CONTAINERS_MOUNTS", mounts)


def calls(*steps: tuple[str, dict[str, Any]]) -> Any:
    """Return a model that calls these tools, one after the other."""
    outputs = [ModelOutput.for_tool_call("mockllm", name, arguments) for name, arguments in steps]
    for output in outputs:
        output.usage = ModelUsage()  # else it counts tokens, with a table from the network
    return get_model("mockllm/model", custom_outputs=outputs)


def run(task: Task, model: Any, engine: Engine, directory: Path) -> EvalLog:
    """Run a task, which must succeed and leave no sandbox."""
    (log,) = evaluate(task, model=model, display="none", log_dir=str(directory))
    assert_gone(engine, str(workspaces_directory()))
    assert log.status == "success", log.error
    return log


def tool_outputs(log: EvalLog) -> Sequence[str]:
    assert log.samples
    return [message.text for message in log.samples[0].messages if message.role == "tool"]


def test_the_example_of_the_how_to(engine: Engine, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    run_page(DOCS / "howto" / "inspect.md", names)
    model = calls(
        ("bash", {"command": "wc -l < log.txt"}),
        ("python", {"code": "print(max(map(len, open('log.txt').read().split('\\n'))))"}),
        ("submit", {"answer": "11"}),
    )
    log = run(names["longest_line"](), model, engine, tmp_path)
    assert tool_outputs(log)[:2] == ["3\n", "11\n"]
    assert log.results
    assert log.results.scores[0].metrics["accuracy"].value == 1


def test_tools_that_inspect_installs(engine: Engine, tmp_path: Path) -> None:
    # They come as a program that runs as a server in the container, between the calls.
    model = calls(
        ("bash_session", {"action": "type_submit", "input": "cd /tmp && echo $((6 * 7))"}),
        ("text_editor", {"command": "create", "path": "/tmp/a", "file_text": "one\ntwo\n"}),
        ("bash_session", {"action": "type_submit", "input": "pwd; wc -l a"}),
        ("submit", {"answer": "done"}),
    )
    task = Task(
        solver=react(tools=[bash_session(), text_editor()]),
        sandbox="rlm-containers",
    )
    printed = tool_outputs(run(task, model, engine, tmp_path))
    assert "42" in printed[0]
    assert "/tmp" in printed[2]
    assert "2 a" in printed[2]


@solver
def does(work: Any) -> Solver:
    """A solver that awaits a function without arguments."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.output = ModelOutput.from_content("mockllm", str(await work()))
        return state

    return solve


def test_what_a_sandbox_does(engine: Engine, tmp_path: Path) -> None:
    async def work() -> str:
        box = sandbox()
        flood = await box.exec(["sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x; echo end"])
        with pytest.raises(TimeoutError) as raised:
            await box.exec(["sh", "-c", "echo begun; sleep 60"], timeout=1)
        with pytest.raises(SandboxUserUnsupportedError, match="cap-add=SETUID"):
            await box.exec(["id"], user="root")
        own = (await box.exec(["id", "-u"])).stdout.strip()
        assert (await box.exec(["id", "-u"], user=own)).stdout.strip() == own
        missing = await box.exec(["no-such-program"])
        connection = await box.connection()
        return repr(
            (
                len(flood.stdout),
                flood.stdout[-4:],
                raised.value.truncated_output,
                missing.returncode,
                connection.command.startswith("rlm-containers exec rlm-"),
            )
        )

    log = run(Task(solver=does(work), sandbox="rlm-containers"), "mockllm/model", engine, tmp_path)
    assert log.samples
    assert log.samples[0].output.completion == repr((10 << 20, "end\n", "begun\n", 127, True))


def test_a_sandbox_that_is_gone(engine: Engine, tmp_path: Path) -> None:
    async def work() -> None:
        box = sandbox()
        name = (await box.connection()).container
        assert name is not None
        engine.run("rm", "--force", name)
        with pytest.raises(SandboxUnavailableError):
            await box.exec(["true"])
        with pytest.raises(SandboxUnavailableError):
            await box.read_file("a")

    run(Task(solver=does(work), sandbox="rlm-containers"), "mockllm/model", engine, tmp_path)


def test_a_sample_that_is_cut_short_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    async def work() -> None:
        await sandbox().exec(["sleep", "600"])

    task = Task(
        dataset=[Sample(input="a"), Sample(input="b")],
        solver=does(work),
        sandbox="rlm-containers",
        time_limit=1,
    )
    log = run(task, "mockllm/model", engine, tmp_path)
    assert log.samples
    assert [sample.limit and sample.limit.type for sample in log.samples] == ["time", "time"]


def test_a_log_is_enough_to_run_a_task_again(engine: Engine, tmp_path: Path) -> None:
    async def work() -> str:
        box = sandbox()
        await box.write_file("a", "x")
        made = await box.exec(["ls", "-d", "/tmp/a"])
        host = await box.exec(["cat", "hostname"], cwd="../etc")
        return made.stdout + host.stdout

    config = ContainerConfig(
        image=engine.image(), working_dir="/tmp", run_args=["--hostname=first"]
    )
    task = Task(solver=does(work), sandbox=SandboxEnvironmentSpec("rlm-containers", config))
    log = run(task, "mockllm/model", engine, tmp_path)
    read = EvalLog.model_validate_json(log.model_dump_json())
    assert read.eval.sandbox == SandboxEnvironmentSpec("rlm-containers", config)
    assert read.samples
    assert read.samples[0].output.completion.split() == ["/tmp/a", "first"]


def test_what_is_wrong_shows_before_samples_run(tmp_path: Path) -> None:
    config = ContainerConfig(runtime="/no/such/podman")
    task = Task(solver=does(None), sandbox=SandboxEnvironmentSpec("rlm-containers", config))
    with pytest.raises(PrerequisiteError, match="/no/such/podman"):
        evaluate(task, model="mockllm/model", display="none", log_dir=str(tmp_path))


def test_a_compose_file_beside_a_task_is_refused(tmp_path: Path) -> None:
    # The tests run in this directory.
    (tmp_path / "compose.yaml").write_text("services: {default: {image: 'an:image'}}")
    for sandbox_of_it in ("rlm-containers", ("docker", "compose.yaml")):
        with pytest.raises(PrerequisiteError, match="compose.yaml.* each is one container"):
            evaluate(
                Task(solver=does(None), sandbox=sandbox_of_it),
                model="mockllm/model",
                sandbox="rlm-containers",
                display="none",
                log_dir=str(tmp_path),
            )


# Without a container


def test_another_event_loop_than_that_of_asyncio() -> None:
    with pytest.raises(PrerequisiteError, match="INSPECT_ASYNC_BACKEND"):
        ContainerSandboxEnvironment.task_init("task", None).send(None)


def test_a_configuration_comes_back_from_a_log() -> None:
    config = ContainerConfig(image="an:image", memory="1g", mounts=["/tmp:/data"], packages=["six"])
    spec = SandboxEnvironmentSpec("rlm-containers", config)
    assert SandboxEnvironmentSpec.model_validate_json(spec.model_dump_json()) == spec
    assert hash(spec)  # Inspect keeps them in sets
    nothing = SandboxEnvironmentSpec("rlm-containers", ContainerConfig())
    read = SandboxEnvironmentSpec.model_validate_json(nothing.model_dump_json())
    assert ContainerConfig.of(read.config) == ContainerConfig()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (None, {}),
        (ContainerConfig(network="none"), {"network": "none"}),
    ],
)
def test_what_a_configuration_may_be(given: Any, options: dict[str, Any]) -> None:
    assert ContainerConfig.of(given).arguments == options


def test_a_dockerfile(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python:3.12-slim\n")
    assert ContainerConfig.of(str(file)).arguments == {"dockerfile": str(file)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imag": "x"}, "Did you mean 'image'"),
        ({"memory": -1}, "memory must be"),
        ({"env": {"KEY": "secret"}}, "Inspect would write the values into its log"),
        ({"session": "work"}, "Every sample of a task has a sandbox of its own"),
        ({"mounts": [object()]}, "cannot be written as JSON"),
    ],
)
def test_what_it_may_not_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as raised:
        ContainerConfig(**arguments)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("given", ["dir/compose.yaml", ComposeConfig(services={}), "/an:image"])
def test_what_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="each is one container"):
        ContainerConfig.of(given)


def test_the_end_of_output_is_kept() -> None:
    tail = Tail(10)
    for piece in (b"0123456789", b"", b"abc", b"defghijkl" * 3, b"xyz"):
        tail.add("stdout", piece)
    tail.add("stderr", b"short")
    assert (tail.text("stdout"), tail.text("stderr")) == ("fghijklxyz", "short")
    for _ in range(1000):
        tail.add("stderr", b"..")
    assert tail.text("stderr") == "." * 10
