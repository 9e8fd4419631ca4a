"""Sandboxes in an event loop, with real guests and no containers."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from rlm_containers import Branch, Branches, Sandbox
from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import OptionError, SandboxClosedError, SetupCodeError
from rlm_containers.repl import ContainerREPL
from tests.support import TIMEOUT
from tests.unit.guests import LocalRuntime

T = TypeVar("T")

pytestmark = pytest.mark.usefixtures("made_bundle")


def within(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a test in a loop, and fail it if it hangs."""
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT))


def box(**options: Any) -> Sandbox:
    return Sandbox(runtime=LocalRuntime(), **options)


#: Methods that return at once.
NON_BLOCKING = {"interrupt", "setup", "get_context_count", "get_history_count"}


@pytest.mark.parametrize("class_", [Sandbox, Branch, Branches, ContainerREPL])
def test_every_blocking_method_has_a_twin_with_the_same_parameters(class_: type[object]) -> None:
    methods = {
        name: method
        for name, method in vars(class_).items()
        if inspect.isfunction(method) and name[0] != "_" and name not in NON_BLOCKING
    }
    blocking = {n for n, method in methods.items() if not inspect.iscoroutinefunction(method)}
    assert blocking
    for name in blocking:
        twin = methods[f"a{name}"]
        assert inspect.iscoroutinefunction(twin)
        assert twin.__qualname__ == f"{class_.__name__}.a{name}"
        assert inspect.signature(twin).parameters == inspect.signature(methods[name]).parameters, (
            name
        )


def test_every_twin_does_what_its_method_does() -> None:
    class Loud(Sandbox):
        def reset_answer(self) -> None:
            raise LookupError

    async def test() -> None:
        async with box(tools={"one": lambda: 1}) as sandbox:
            assert (await sandbox.aexecute("6 * 7", display=True)).stdout == "42\n"
            assert '<mine>", line 1' in (await sandbox.aexecute("1 / 0", name="mine")).stderr
            await sandbox.aload("history", [1], keep=True)
            await sandbox.aexecute("history = None; kept = 2")
            await sandbox.akeep("kept")
            assert (await sandbox.aexecute("print(history, kept)")).stdout == "[1] 2\n"
            await sandbox.aset_tools({"two": lambda: 2})
            assert (await sandbox.aexecute("print(two())")).stdout == "2\n"
            assert await sandbox.aput_file(b"text", "a.txt") == "a.txt"
            assert await sandbox.aget_file("a.txt") == b"text"
            assert "a.txt" in [file.name for file in await sandbox.alist_files()]
            await sandbox.aexecute("answer['content'] = 'done'; answer['ready'] = True")
            await sandbox.areset_answer()
            assert (await sandbox.aexecute("")).final_answer is None
            await sandbox.aexecute("n = 2; generator = (i for i in 'ab')")
            assert [variable.name for variable in await sandbox.aunsaved()] == ["generator"]
            id_ = await sandbox.asnapshot("a note")
            assert [(s.id, s.note) for s in await sandbox.asnapshots()] == [(id_, "a note")]
            await sandbox.aexecute("n = 3")
            async with await sandbox.afork() as other:
                await sandbox.arestore(id_)
                assert (await other.aexecute("print(n)")).stdout == "3\n"
            assert (await sandbox.aexecute("print(n)")).stdout == "2\n"
            await sandbox.aremove_snapshot(id_)
            assert await sandbox.asnapshots() == []
            with pytest.raises(SetupCodeError, match="The tool x failed"):
                await sandbox.arun_setup("1 / 0", "tool x")
        with pytest.raises(LookupError):
            await Loud(runtime=LocalRuntime()).areset_answer()

    within(test())


def test_cells_are_awaited() -> None:
    async def test() -> None:
        async with box() as sandbox:
            assert (await sandbox.aexecute("x = 6 * 7")).status == "ok"
            assert (await sandbox.aexecute("print(x)")).stdout == "42\n"
            await sandbox.aload("document", {"a": [1]})
            assert (await sandbox.aexecute("print(document)")).stdout == "{'a': [1]}\n"
            with pytest.raises(OptionError):
                await sandbox.aexecute(5)  # type: ignore[arg-type]
        with pytest.raises(SandboxClosedError):
            await sandbox.aexecute("x")
        with pytest.raises(SandboxClosedError):
            await sandbox.astart()
        await sandbox.aclose()

    within(test())


def test_many_sandboxes_of_one_loop_work_at_the_same_time() -> None:
    # Each cell waits for all others, so no sandbox may block the loop or wait for another's thread.
    count = 8
    arrived: list[int] = []
    everyone = asyncio.Event()

    async def meet(number: int) -> int:
        arrived.append(number)
        if len(arrived) == count:
            everyone.set()
        await everyone.wait()
        return len(arrived)

    async def one(number: int) -> str:
        async with box(tools={"meet": meet}) as sandbox:
            return (await sandbox.aexecute(f"print(meet({number}))")).stdout

    async def test() -> None:
        assert await asyncio.gather(*map(one, range(count))) == [f"{count}\n"] * count

    within(test())


def test_async_functions_run_on_the_loop_that_awaits() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def answer(prompt: str) -> str:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return prompt.upper()

    async def test() -> None:
        async with box(lm=answer, tools={"ask": answer}) as sandbox:
            code = "print(llm_query('a'), llm_query_batched(['b', 'c']), ask('d'))"
            assert (await sandbox.aexecute(code)).stdout == "A ['B', 'C'] D\n"
            await sandbox.arun_setup("ask('e')")
            assert len(loops) == 5
            assert set(loops) == {asyncio.get_running_loop()}

    within(test())
    with box(lm=answer) as sandbox:  # and without a loop
        assert sandbox.execute("print(llm_query('a'))").stdout == "A\n"


def test_output_comes_to_the_loop_while_the_cell_runs() -> None:
    heard: list[tuple[str, str]] = []

    async def test() -> None:
        thread, said = threading.current_thread(), asyncio.Event()

        def listen(stream: str, text: str) -> None:
            assert threading.current_thread() is thread
            heard.append((stream, text))
            said.set()

        async with box(tools={"heard": said.wait}) as sandbox:
            await sandbox.aexecute("print('one'); heard()\nprint('two')", on_output=listen)
        assert "".join(text for _, text in heard) == "one\ntwo\n"

    within(test())


def test_a_callback_that_fails_ends_the_cell() -> None:
    def fail(stream: str, text: str) -> None:
        raise LookupError(text)

    async def test() -> None:
        async with box() as sandbox:
            with pytest.raises(LookupError, match="out"):
                await sandbox.aexecute("print('out')\nimport time\ntime.sleep(60)", on_output=fail)
            assert (await sandbox.aexecute("print(1)")).stdout == "1\n"

    within(test())


def test_cancelling_interrupts_the_cell_and_keeps_the_session() -> None:
    async def test() -> None:
        running = asyncio.Event()

        async def begun() -> None:
            running.set()

        async with box(tools={"begun": begun}) as sandbox:
            task = asyncio.create_task(
                sandbox.aexecute("x = 1\nbegun()\nimport time\ntime.sleep(60)\nx = 2")
            )
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await sandbox.aexecute("print(x)")).stdout == "1\n"

    within(test())


def test_cancelling_a_waiting_cell_leaves_the_running_one_alone() -> None:
    async def test() -> None:
        running, go = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            running.set()
            await go.wait()

        async with box(tools={"wait": wait}) as sandbox:
            first = asyncio.create_task(sandbox.aexecute("wait()\nprint('done')"))
            await running.wait()
            second = asyncio.create_task(sandbox.aexecute("never = 1"))
            await asyncio.sleep(0)
            second.cancel()
            go.set()
            assert (await first).stdout == "done\n"
            with pytest.raises(asyncio.CancelledError):
                await second
            assert (await sandbox.aexecute("print('never' in globals())")).stdout == "False\n"

    within(test())


def test_cancelling_a_fork_leaves_nothing_running() -> None:
    local = LocalRuntime()

    async def test() -> None:
        async with Sandbox(runtime=local) as sandbox:
            task = asyncio.create_task(sandbox.afork())
            await asyncio.sleep(0)  # let the fork begin
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(local.processes) == 2
            assert local.processes[1].wait(TIMEOUT) == 0
            assert (await sandbox.aexecute("print(1)")).stdout == "1\n"

    within(test())


def test_callbacks_see_the_callers_context_variables() -> None:
    who = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []

    async def test() -> None:
        who.set("me")
        async with box() as sandbox:
            await sandbox.aexecute("print()", on_output=lambda *_: seen.append(who.get()))

    within(test())
    assert seen == ["me"]


def test_a_failed_start_leaves_nothing_running() -> None:
    local = LocalRuntime()

    async def test() -> None:
        with pytest.raises(SetupCodeError):
            async with Sandbox(runtime=local, setup_code="1 / 0"):
                pass

    within(test())
    assert [process.wait(TIMEOUT) for process in local.processes] == [0]


def test_container_repl_in_an_event_loop(made_bundle: Bundle) -> None:
    async def test() -> None:
        async with await ContainerREPL.acreate(
            runtime=LocalRuntime(), context_payload="text"
        ) as environment:
            assert (await environment.aexecute_code("print(context)")).stdout == "text\n"
            assert await environment.aadd_context(["more"]) == 1
            assert (await environment.aexecute_code("print(context_1)")).stdout == "['more']\n"
        with pytest.raises(SandboxClosedError):
            await environment.aexecute_code("1")
        with pytest.raises(OptionError, match="image"):
            await ContainerREPL.acreate(imag="x")

    within(test())
