"""Calls of a sandbox inside of its own calls, and closing at any moment from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import (
    ContainersError,
    SandboxBusyError,
    SandboxClosedError,
    SandboxLostError,
    SandboxStartError,
)
from tests.support import TIMEOUT, eventually
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run

Act = Callable[[], Any]

PLACES = ("signal handler", "on_output", "tool", "async tool", "lm", "__del__")

CELLS = {
    "signal handler": "print('begun'); kick()",
    "on_output": "print('begun')",
    "tool": "print('begun'); tool()",
    "async tool": "print('begun'); atool()",
    "lm": "print('begun'); llm_query('x')",
    "__del__": "print('begun')",
}


class Inside:
    """Does something inside of a call of a sandbox, in any of the places where users' code runs."""

    def __init__(self) -> None:
        self.act: Act = lambda: None
        self.raised: list[BaseException] = []
        self.done = threading.Event()

    def __call__(self, *_: Any) -> None:
        act, self.act = self.act, lambda: None
        try:
            act()
        except ContainersError as error:
            self.raised.append(error)
        finally:
            self.done.set()

    def kick(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        assert self.done.wait(TIMEOUT)

    def lm(self, prompt: str) -> str:
        self()
        return prompt

    async def atool(self) -> None:
        self()

    def callback(self, place: str) -> Callable[[str, str], Any] | None:
        """The ``on_output`` of a cell that acts in that place."""
        if place == "on_output":
            return self
        return (lambda *_: Dropped(self)) if place == "__del__" else None

    @property
    def options(self) -> dict[str, Any]:
        tools = {"kick": self.kick, "tool": self, "atool": self.atool}
        return {"lm": self.lm, "tools": tools}

    def execute(self, box: Sandbox, place: str, act: Act) -> Any:
        """Run a cell, and ``act`` in that place."""
        self.act, self.raised = act, []
        self.done.clear()
        callback = self.callback(place)
        return box.execute(CELLS[place], on_output=callback)


class Dropped:
    """Acts when it is collected."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside

    def __del__(self) -> None:
        self.inside()


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    inside = Inside()
    before = signal.signal(signal.SIGUSR1, inside)
    yield inside
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(scope="module")
def same(inside: Inside, made_bundle: Bundle) -> Iterator[Sandbox]:
    with Sandbox(runtime=LocalRuntime(), **inside.options) as box:
        yield box


BLOCKING: dict[str, Callable[[Sandbox], Any]] = {
    "execute": lambda box: box.execute("spoilt = True"),
    "run_setup": lambda box: box.run_setup("spoilt = True"),
    "load": lambda box: box.load("spoilt", "x"),
    "keep": lambda box: box.keep("spoilt"),
    "set_tools": lambda box: box.set_tools({}),
    "reset_answer": lambda box: box.reset_answer(),
    "unsaved": lambda box: box.unsaved,
    "snapshot": lambda box: box.snapshot(),
    "snapshots": lambda box: box.snapshots(),
    "restore": lambda box: box.restore("x"),
    "remove_snapshot": lambda box: box.remove_snapshot("x"),
    "fork": lambda box: box.fork(),
    "start": lambda box: box.start(),
}

ALLOWED: dict[str, Callable[[Sandbox], Any]] = {
    "put_file": lambda box: box.put_file(b"x", "file.txt"),
    "get_file": lambda box: box.get_file("there.txt"),
    "list_files": lambda box: box.list_files(),
    "lm_route": lambda box: box.lm_route,
    "repr": repr,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_call_inside_of_a_cell_is_refused_at_once(
    same: Sandbox, inside: Inside, place: str
) -> None:
    refused: dict[str, str] = {}

    def all_of_them() -> None:
        for name, call in BLOCKING.items():
            with pytest.raises(SandboxBusyError, match="inside of another call") as caught:
                call(same)
            assert "close()" in caught.value.remedy
            assert caught.value.container == same.name
            refused[name] = caught.value.what

    result = inside.execute(same, place, all_of_them)
    assert refused.keys() == BLOCKING.keys()
    assert (result.status, result.stdout) == ("ok", "begun\n")
    # Its output belongs to it, and nothing was left half done.
    assert run(same, "print('spoilt' in globals())").stdout == "False\n"
    assert same.snapshots() == []


@pytest.mark.parametrize("place", PLACES)
def test_what_does_not_wait_may_be_called_inside(same: Sandbox, inside: Inside, place: str) -> None:
    same.put_file(b"there", "there.txt")
    results: list[Any] = []
    result = inside.execute(
        same, place, lambda: results.extend(call(same) for call in ALLOWED.values())
    )
    assert (result.status, inside.raised, len(results)) == ("ok", [], len(ALLOWED))
    assert results[1] == b"there"


@pytest.mark.parametrize("place", PLACES)
def test_a_cell_may_be_interrupted_from_everywhere(
    same: Sandbox, inside: Inside, place: str
) -> None:
    inside.act = same.interrupt
    inside.done.clear()
    callback = inside.callback(place)
    code = f"import time\n{CELLS[place]}\ntime.sleep(600)"
    assert same.execute(code, on_output=callback).status == "interrupted"
    assert run(same, "print(1)").stdout == "1\n"


@pytest.mark.parametrize("place", PLACES)
def test_closing_inside_of_a_cell(boxes: Boxes, inside: Inside, place: str) -> None:
    box = boxes(**inside.options)
    # The cell may have ended before.
    with pytest.raises((SandboxLostError, SandboxClosedError), match="closed"):
        inside.execute(box, place, box.close)
        box.execute("import time; time.sleep(600)")  # a __del__ may run after the last output
    assert inside.raised == []
    assert eventually(lambda: "closed" in repr(box))
    assert boxes.local.processes[-1].stdin == -1
    with pytest.raises(SandboxClosedError):
        box.execute("1")


def test_closing_in_a_signal_handler_that_exits(boxes: Boxes, inside: Inside) -> None:
    box = boxes(**inside.options)

    def shut_down() -> None:
        box.close()
        raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        inside.execute(box, "signal handler", shut_down)
    assert caught.value.code == 3
    assert boxes.local.processes[-1].stdin == -1


def test_closing_while_it_starts(inside: Inside, local: LocalRuntime, made_bundle: Bundle) -> None:
    box = Sandbox(runtime=local, setup_code="kick()", **inside.options)
    inside.act = box.close
    inside.done.clear()
    with pytest.raises(SandboxLostError):
        box.start()
    assert local.processes[-1].stdin == -1
    assert "closed" in repr(box)


def test_closing_while_its_container_starts(local: LocalRuntime, made_bundle: Bundle) -> None:
    local.programs.append(("sleep", "600"))
    box = Sandbox(runtime=local, start_timeout=600)
    closer = threading.Thread(target=lambda: (eventually(lambda: local.processes), box.close()))
    closer.start()
    with pytest.raises((SandboxStartError, SandboxClosedError)):
        box.start()
    closer.join(TIMEOUT)
    assert not closer.is_alive()


def test_a_tool_of_one_sandbox_that_waits_for_itself_by_way_of_another(boxes: Boxes) -> None:
    raised: list[BaseException] = []

    def back() -> None:
        try:
            first.execute("1")
        except SandboxBusyError as error:
            raised.append(error)

    second = boxes(tools={"back": back})
    first = boxes(tools={"on": lambda: second.execute("back()").status})
    assert run(first, "print(on())").stdout == "ok\n"
    assert len(raised) == 1


def test_what_a_tool_leaves_behind_may_call_the_sandbox_later() -> None:
    async def test() -> str:
        later: list[asyncio.Task[Any]] = []
        ended = asyncio.Event()

        async def cell() -> str:
            await ended.wait()
            return (await box.aexecute("print('later')")).stdout

        async def schedule() -> None:
            later.append(asyncio.create_task(cell()))

        async with Sandbox(runtime=LocalRuntime(), tools={"schedule": schedule}) as box:
            await box.aexecute("schedule()")
            ended.set()
            return str(await later[0])

    assert asyncio.run(test()) == "later\n"


def test_an_awaited_cell_inside_of_a_cell_is_refused() -> None:
    async def test() -> None:
        raised: list[BaseException] = []

        async def inner() -> None:
            for call in (box.aexecute("1"), box.aload("x", "y"), box.asnapshot(), box.afork()):
                try:
                    await call
                except SandboxBusyError as error:
                    raised.append(error)

        async with Sandbox(runtime=LocalRuntime(), tools={"inner": inner}) as box:
            assert (await box.aexecute("print(inner())")).stdout == "None\n"
            assert len(raised) == 4

    asyncio.run(asyncio.wait_for(test(), TIMEOUT))


@contextlib.contextmanager
def signals(chance: random.Random, handler: Callable[..., Any], longest: float) -> Iterator[None]:
    """One signal to this thread, at a random moment."""
    before = signal.signal(signal.SIGUSR2, handler)
    main, ended = threading.main_thread().ident or 0, threading.Event()

    def send() -> None:
        if not ended.wait(chance.random() * longest):
            signal.pthread_kill(main, signal.SIGUSR2)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()
        signal.signal(signal.SIGUSR2, before)


class Stop(BaseException):
    """Raised by a handler."""


def test_exceptions_of_a_signal_handler_at_random_moments_harm_no_later_cell(boxes: Boxes) -> None:
    chance = random.Random(9)
    box = boxes()
    run(box, "kept = 1")

    def stop(*_: object) -> None:
        raise Stop

    for number in range(60):
        padding = "#" * chance.choice((1, 1000, 3_000_000))
        with contextlib.suppress(Stop), signals(chance, stop, 0.01 + len(padding) / 3e7):
            box.execute(f"print('of {number}')\n{padding}")
        assert run(box, f"print({number}, kept)").stdout == f"{number} 1\n"


def test_signal_handlers_that_close_at_random_moments(made_bundle: Bundle) -> None:
    chance = random.Random(9)
    for _ in range(15):
        local = LocalRuntime()
        box = Sandbox(runtime=local)
        close = lambda *_: box.close()  # noqa: E731, B023
        with contextlib.suppress(ContainersError), signals(chance, close, 0.5), box:
            for _ in range(100):
                box.execute("print('x' * 1000)")
                box.load("context", "x" * 1000)
                box.snapshot()
        box.close()
        assert all(process.stdin == -1 for process in local.processes)


# Async twins that are cancelled


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.2, 0.5])
def test_async_twins_that_are_cancelled_at_any_time(moment: float, made_bundle: Bundle) -> None:
    local = LocalRuntime()

    async def test() -> None:
        async with Sandbox(runtime=local) as box:
            await box.aexecute("kept = 1")
            id_ = await box.asnapshot()
            for call in (
                box.aexecute("x = 2"),
                box.asnapshot("more"),
                box.arestore(id_),
                box.aload("y", "z"),
                box.aput_file(b"x", "x.txt"),
                box.afork(),
                Sandbox(runtime=local).astart(),
            ):
                task: asyncio.Future[Any] = asyncio.ensure_future(call)
                await asyncio.sleep(moment)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    made = await task
                    if isinstance(made, Sandbox):
                        await made.aclose()
                assert (await box.aexecute("print(kept)")).stdout == "1\n"

    asyncio.run(asyncio.wait_for(test(), TIMEOUT))
    assert all(process.stdin == -1 for process in local.processes)


def test_a_fork_whose_loop_has_ended_is_closed(
    boxes: Boxes, own_sessions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = boxes()
    loop = asyncio.new_event_loop()
    task = loop.create_task(box.afork("kept"))
    loop.run_until_complete(asyncio.sleep(0))  # the fork begins
    task.cancel()
    with contextlib.suppress(AttributeError):
        task._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del task
    gc.collect()
    assert eventually(lambda: len(boxes.local.processes) == 2)
    assert eventually(lambda: boxes.local.processes[1].stdin == -1)

    def free() -> bool:
        try:
            boxes(session="kept").close()
        except ContainersError:
            return False
        return True

    assert eventually(free)
