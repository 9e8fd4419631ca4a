"""``ContainerWorkspace`` under pydantic-ai's own conformance suite, and in an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from rlm_containers import Sandbox
from tests.agents.conftest import RunPage
from tests.support import Engine, assert_gone, on_ci

if not on_ci():  # on CI it must be installed
    pytest.importorskip("pydantic_ai", reason="pip install 'rlm-containers[pydantic-ai]'")

import anyio
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.workspaces import (
    Workspace,
    WorkspaceBackend,
    WorkspaceOutputLimitError,
    WorkspaceRef,
    WorkspaceUnavailableError,
)
from pydantic_ai.workspaces.conformance import WorkspaceBackendSuite

from rlm_containers.integrations.pydantic_ai import ContainerWorkspace

Make = Callable[[], ContainerWorkspace]


@pytest.fixture
def make(engine: Engine) -> Iterator[Make]:
    """Make workspaces whose sandboxes are not started. Fails if anything is left of them."""
    made: list[Sandbox] = []

    def make() -> ContainerWorkspace:
        made.append(Sandbox(engine.image(), runtime=engine.runtime))
        return ContainerWorkspace(made[-1])

    yield make
    for box in made:
        box.close()
    assert_gone(engine, *(box.name for box in made))


@pytest.fixture(scope="module")
def shared(engine: Engine) -> Iterator[Sandbox]:
    with Sandbox(engine.image(), runtime=engine.runtime) as box:
        yield box


class TestConformance(WorkspaceBackendSuite):
    """pydantic-ai's rules for a backend."""

    @pytest.fixture
    def backend(self, shared: Sandbox) -> WorkspaceBackend:
        return ContainerWorkspace(shared)

    @pytest.fixture
    def fresh_backend(self, make: Make) -> Make:
        return make

    @pytest.fixture
    def attach_backend(self) -> Callable[[WorkspaceRef], WorkspaceBackend]:
        return ContainerWorkspace.attach

    @pytest.fixture
    def destroy_environment(self) -> Callable[[WorkspaceBackend], Awaitable[None]]:
        async def destroy(backend: WorkspaceBackend) -> None:
            assert isinstance(backend, ContainerWorkspace)
            await backend.box.aclose()

        return destroy


@pytest.fixture
def loop() -> Iterator[None]:
    """The loop for ``run_sync()``, which would leave one open."""
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        yield
    asyncio.set_event_loop(None)


def test_an_agent(run_how_to: RunPage, loop: None) -> None:
    seen: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        returned = [
            str(part.content)
            for message in messages
            for part in message.parts
            if isinstance(part, ToolReturnPart)
        ]
        if not returned:
            command = "awk -F, '$1 == \"apple\" {n += $2} END {print n}' sales.csv"
            return ModelResponse([ToolCallPart("shell", {"command": command})])
        seen.extend(returned)
        return ModelResponse([TextPart(f"{returned[-1].split()[1]} apples were sold.")])

    run_how_to("pydantic-ai", model=FunctionModel(answer))
    assert seen == ["0\n8\n"]


@pytest.mark.anyio
async def test_output_that_is_too_long(shared: Sandbox) -> None:
    with pytest.raises(WorkspaceOutputLimitError) as caught:
        await ContainerWorkspace(shared).run("echo first; seq 1000000; echo last >&2", shell=True)
    assert caught.value.limit == shared.options.max_output
    assert caught.value.stdout.startswith("first\n")
    assert caught.value.stderr == "last\n"


@pytest.mark.anyio
async def test_files_outside_of_the_workspace(shared: Sandbox) -> None:
    workspace = Workspace(ContainerWorkspace(shared))
    await workspace.write_text("/tmp/a/b.txt", "text")
    assert await workspace.read_text("/tmp/a/b.txt") == "text"
    assert [entry.name for entry in await workspace.list_dir("/tmp/a")] == ["b.txt"]
    with pytest.raises(PermissionError):
        await workspace.write_text("/etc/passwd", "")
    assert not await workspace.exists("/etc/passwd/below")


@pytest.mark.anyio
async def test_while_a_cell_runs(shared: Sandbox) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            shared.aexecute, "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
        )
        workspace = Workspace(ContainerWorkspace(shared))
        with anyio.fail_after(60):
            assert (await workspace.run(["echo", "here"])).stdout == "here\n"
            await workspace.write_bytes("go", b"")
    await workspace.remove("go")


def test_a_ref_of_something_else() -> None:
    for provider, name in (("local", "/"), ("rlm-containers", "rlm-000000000000")):
        with pytest.raises(WorkspaceUnavailableError):
            ContainerWorkspace.attach(WorkspaceRef(provider=provider, id=name))


@pytest.mark.anyio
async def test_a_sandbox_that_is_closed_before_its_first_use() -> None:
    workspace = ContainerWorkspace(Sandbox())
    workspace.box.close()
    for use in (workspace.working_dir(), workspace.run(["true"]), workspace.exists("/")):
        with pytest.raises(WorkspaceUnavailableError):
            await use
