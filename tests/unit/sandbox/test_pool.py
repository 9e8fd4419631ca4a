"""Sandboxes whose containers have waited for them, with real guests and no containers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import ContainerREPL, Sandbox, SandboxPool
from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import (
    ConfigError,
    EngineUnavailableError,
    OptionError,
    SandboxClosedError,
    SandboxError,
    SandboxForkedError,
    SetupCodeError,
)
from rlm_containers.options import configured_options
from rlm_containers.state import passing_snapshots_directory, workspaces_directory
from runtimes import ContainerProcess, ContainerSpec
from tests.support import TIMEOUT, eventually, processes
from tests.unit.guests import LocalRuntime
from tests.unit.sandbox.test_forks import in_child
from tests.unit.sessions import run, workspace_of

REPOSITORY = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("made_bundle")

MakePool = Callable[..., SandboxPool]


@pytest.fixture
def make_pool(local: LocalRuntime, made_bundle: Bundle) -> Iterator[MakePool]:
    """Make pools. Afterwards nothing of them is left."""
    made: list[SandboxPool] = []

    def make(*, size: int = 1, **arguments: Any) -> SandboxPool:
        pool = SandboxPool(runtime=local, size=size, **arguments)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()
        assert pool.waiting == 0
    for process in local.processes:
        assert ended(process.pid)
    names = {spec.name for spec in local.specs}
    assert not [name for name in names if (workspaces_directory() / name).exists()]


def ended(pid: int) -> bool:
    def is_gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    return eventually(is_gone)


def filled(pool: SandboxPool, size: int = 1) -> SandboxPool:
    pool.fill()
    assert eventually(lambda: pool.waiting == size)
    return pool


def names(local: LocalRuntime) -> list[str]:
    return [spec.name for spec in local.specs]


def test_a_sandbox_gets_a_container_that_waits(make_pool: MakePool, local: LocalRuntime) -> None:
    pool = filled(make_pool(size=2), 2)
    waiting = names(local)
    with pool.sandbox() as box:
        assert box.name in waiting
        waiting.remove(box.name)
        assert box.options.pool is None
        run(box, "x = 6")
        assert run(box, "print(x * 7)").stdout == "42\n"
        assert box.python_version == sys.version.split()[0]
        assert eventually(lambda: pool.waiting == 2)
    # It was used once. Another one is there instead.
    with pool.sandbox() as box:
        assert [box.name] == waiting
        assert "NameError" in box.execute("x").stderr


def test_an_interrupt_before_the_start_leaves_the_room_free(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = filled(make_pool(max_size=1))

    def interrupted(self: Sandbox) -> Sandbox:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Sandbox, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire()
    with pool.sandbox(timeout=TIMEOUT) as box:
        assert run(box, "print(1)").stdout == "1\n"


def test_a_pool_that_two_threads_close(make_pool: MakePool) -> None:
    pool = filled(make_pool(size=4), 4)
    errors: list[BaseException] = []

    def close() -> None:
        try:
            pool.close()
            assert pool.waiting == 0
            assert not list(workspaces_directory().glob("rlm-*"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_a_sandbox_is_told_is_its_own(make_pool: MakePool) -> None:
    pool = filled(make_pool(size=2, env={"A": "1"}, setup_code="ready = 'yes'"), 2)
    one = pool.acquire(lm=lambda prompt: f"one {prompt}", tools={"f": lambda: 1})
    other = pool.acquire(
        lm=lambda prompt: f"other {prompt}", scaffold=False, env={"B": "2"}, max_output=100
    )
    with one, other:
        assert run(one, "print(llm_query('?'), f(), ready)").stdout == "one ? 1 yes\n"
        assert "llm_query" not in run(other, "print(sorted(globals()))").stdout
        assert "NameError" in other.execute("f()").stderr
        code = "import os; print(os.environ.get('A'), os.environ.get('B'))"
        assert run(one, code).stdout == "1 None\n"
        assert run(other, code).stdout == "None 2\n"
        assert len(other.execute("print('x' * 5000)").stdout) < 1000


def test_limits_of_a_sandbox_hold(make_pool: MakePool) -> None:
    pool = filled(make_pool(cell_timeout=0.2))
    with pool.sandbox() as box:
        assert box.execute("while True: pass").status == "timeout"
    with pool.sandbox(max_lm_calls=1, lm=lambda prompt: "answer") as box:
        result = box.execute("print(llm_query('1'), llm_query('2'))")
        assert result.stdout.startswith("answer Error: ")


def test_setup_code_that_fails_leaves_nothing(make_pool: MakePool) -> None:
    pool = filled(make_pool())
    with pytest.raises(SetupCodeError):
        pool.acquire(setup_code="1 / 0")
    with pool.sandbox(setup_code="x = 5") as box:
        assert run(box, "print(x)").stdout == "5\n"


def test_a_fork_takes_the_files_and_variables_along(local: LocalRuntime) -> None:
    with Sandbox(runtime=local, pool=1) as box:
        run(box, "x = [1]; open('file', 'w').write('text')")
        assert eventually(lambda: len(local.specs) == 2)
        assert eventually(lambda: "1 of 1 wait" in repr(pool_of(box)))
        with box.fork() as fork:
            assert fork.name == names(local)[1]
            assert run(fork, "print(x, open('file').read())").stdout == "[1] text\n"
            assert workspace_of(fork) != workspace_of(box)
        with box.fork(session="forked") as fork:
            assert fork.options.pool is None
    pool_of(box).close()


def pool_of(box: Sandbox) -> Any:
    from rlm_containers.container import shared_pool

    return shared_pool(box.options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "other"}, "image cannot be given to a sandbox of a pool"),
        ({"memory": "1g"}, "memory cannot be given"),
        ({"mounts": ["/tmp:/data"]}, "mounts cannot be given"),
        ({"session": "name"}, "session cannot be given"),
        ({"cell_timout": 1}, "no argument 'cell_timout'.* 'cell_timeout'"),
        ({"cell_timeout": "x"}, "cell_timeout must be"),
        ({"env": "x"}, "env must be"),
        ({"tools": {"1": print}}, "cannot be the name of a tool"),
        ({"lm": 5}, "lm must be callable"),
    ],
)
def test_what_a_waiting_container_cannot_take_is_an_error(
    make_pool: MakePool, options: dict[str, Any], message: str
) -> None:
    pool = make_pool(max_size=1)
    for _ in range(2):  # it must not count as one in use
        with pytest.raises(OptionError, match=f"(?s){message}"):
            pool.acquire(timeout=0, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be a number of containers, at least 1, not 0"),
        ({"size": True}, "size must be"),
        ({"size": 4, "max_size": 3}, "max_size must be a number of containers, at least size=4"),
        ({"idle_timeout": 0}, "idle_timeout must be a number of seconds"),
        ({"size": 4, "pool": 2}, "has no pool"),
        ({"size": 4, "session": "name"}, "pool=4 and session='name' contradict each other"),
        ({"size": 4, "sizes": 3}, "no argument 'sizes'.* 'size'"),
    ],
)
def test_arguments_are_checked(local: LocalRuntime, arguments: Any, message: str) -> None:
    with pytest.raises(OptionError, match=f"(?s){message}"):
        SandboxPool(runtime=local, **arguments)


def test_a_pool_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_CONTAINERS_POOL", "3")
    assert configured_options({}).pool == 3
    assert configured_options({"pool": None}).pool is None
    assert SandboxPool(size=2).options.pool is None
    with pytest.raises(ConfigError, match="pool is set in RLM_CONTAINERS_POOL"):
        configured_options({"session": "name"})
    with pytest.raises(OptionError, match="pool must be a number of containers"):
        configured_options({"pool": 0})


# Containers that do not live


def test_one_that_died_is_replaced_unnoticed(make_pool: MakePool, local: LocalRuntime) -> None:
    pool = filled(make_pool(size=2), 2)
    dead = local.processes[0]
    os.kill(dead.pid, signal.SIGKILL)
    for _ in range(2):
        with pool.sandbox() as box:
            assert box.name != dead.name
            run(box, "x = 1")
    assert eventually(lambda: not (workspaces_directory() / dead.name).exists())


def test_one_that_is_stopped_is_replaced(make_pool: MakePool, local: LocalRuntime) -> None:
    pool = filled(make_pool())
    stopped = local.processes[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    with pool.sandbox() as box:  # starts its own
        assert box.name not in (stopped.name, None)
        run(box, "x = 1")
    assert ended(stopped.pid)


def test_one_whose_worker_died_is_replaced(make_pool: MakePool, local: LocalRuntime) -> None:
    pool = filled(make_pool())
    supervisor = local.processes[0].pid
    (worker,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    with pool.sandbox() as box:
        run(box, "x = 1")


class Flaky(LocalRuntime):
    """An engine that may refuse to start containers."""

    def __init__(self) -> None:
        super().__init__()
        self.works = True
        self.refused = 0

    def open(self, spec: ContainerSpec) -> ContainerProcess:
        if not self.works:
            self.refused += 1
            raise EngineUnavailableError("it does not answer")
        return super().open(spec)


def test_an_engine_that_dies_is_an_error_and_not_asked_again_and_again() -> None:
    local = Flaky()
    with SandboxPool(runtime=local, size=1) as pool:
        assert eventually(lambda: pool.waiting == 1)
        local.works = False
        os.kill(local.processes[0].pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailableError, match="does not answer"):
            pool.acquire()
        pool.fill()
        assert eventually(lambda: local.refused >= 2)
        local.works = True
        with pool.sandbox() as box:
            run(box, "x = 1")
        assert eventually(lambda: pool.waiting == 1)
        assert local.refused == 2


# How many


def test_no_more_than_max_size_are_in_use(make_pool: MakePool, local: LocalRuntime) -> None:
    pool = make_pool(size=1, max_size=2)
    one, other = pool.acquire(), pool.acquire()
    with pytest.raises(SandboxError, match="All 2 sandboxes of the pool were in use for 0 s"):
        pool.acquire(timeout=0)
    got: list[Sandbox] = []
    thread = threading.Thread(target=lambda: got.append(pool.acquire(timeout=TIMEOUT)))
    thread.start()
    one.close()
    thread.join(TIMEOUT)
    assert [box.execute("print(1)").stdout for box in got] == ["1\n"]
    assert len(local.specs) == 3  # no room for one that waits
    for box in (*got, other):
        box.close()
    assert eventually(lambda: pool.waiting == 1)


def test_idle_ones_are_ended(make_pool: MakePool, local: LocalRuntime) -> None:
    pool = make_pool(size=2, idle_timeout=1.0).fill()
    assert eventually(lambda: len(local.processes) == 2)
    for process in local.processes:
        assert ended(process.pid)
    assert (pool.waiting, len(local.specs)) == (0, 2)
    with pool.sandbox() as box:
        run(box, "x = 1")
        assert eventually(lambda: len(local.specs) == 5)


def test_many_threads_share_a_pool(make_pool: MakePool) -> None:
    pool = filled(make_pool(size=2), 2)
    seen: list[tuple[str, str]] = []

    def work(number: int) -> None:
        for _ in range(2):
            with pool.sandbox() as box:
                seen.append((box.name, box.execute(f"print({number})").stdout))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len({name for name, _ in seen}) == 10
    assert sorted(text for _, text in seen) == sorted(f"{n}\n" for n in range(5) for _ in "12")


def test_sandboxes_with_the_same_options_share_a_pool(local: LocalRuntime) -> None:
    pools = []
    for options in (
        {"pool": 1},
        {"pool": 1, "env": {"A": "1"}, "cell_timeout": 5.0, "setup_code": "x = 1"},
        {"pool": 1, "memory": "1g"},
    ):
        with Sandbox(runtime=local, **options) as box:
            pools.append(pool_of(box))
            assert eventually(lambda: pools[-1].waiting == 1)
    one, same, other = pools
    assert one is same is not other
    with ContainerREPL(runtime=local, pool=2, setup_code="y = 2") as repl:
        assert repl.execute_code("print(y)").stdout == "2\n"
        assert pool_of(repl.sandbox) is one
        assert one.size == 2
    for pool in pools:
        pool.close()


# The end


def test_closing_ends_what_waits_and_leaves_alone_what_is_used(make_pool: MakePool) -> None:
    pool = filled(make_pool(size=2), 2)
    with pool.sandbox() as box:
        pool.close()
        pool.close()
        assert pool.waiting == 0
        run(box, "x = 1")
        with pytest.raises(SandboxClosedError, match="The pool was closed"):
            pool.acquire()


def test_closing_in_the_middle_of_filling(make_pool: MakePool, local: LocalRuntime) -> None:
    local.programs = [(sys.executable, "-c", "import sys; sys.stdin.read()")] * 2
    pool = make_pool(size=2)
    pool.fill()
    assert eventually(lambda: len(local.processes) == 2)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() < began + TIMEOUT / 2
    for process in local.processes:
        assert ended(process.pid)


def test_whoever_waits_for_room_hears_of_the_end(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_size=1)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            pool.acquire()
        except SandboxClosedError as error:
            errors.append(error)

    with pool.sandbox():
        thread = threading.Thread(target=wait)
        thread.start()
        pool.close()
        thread.join(TIMEOUT)
    assert len(errors) == 1


def test_a_forked_child_cannot_use_it_and_does_not_end_it(make_pool: MakePool) -> None:
    pool = filled(make_pool())

    def use() -> None:
        with pytest.raises(SandboxForkedError, match="Make a pool in each process"):
            pool.acquire()
        with pytest.raises(SandboxForkedError):
            pool.fill()
        pool.close()

    in_child(use)
    with pool.sandbox() as box:
        run(box, "x = 1")


def test_a_forked_child_has_shared_pools_of_its_own(local: LocalRuntime) -> None:
    with Sandbox(runtime=local, pool=1) as box:
        pool = pool_of(box)
        assert eventually(lambda: pool.waiting == 1)

    def use() -> None:
        with Sandbox(runtime=local, pool=1) as own:
            assert pool_of(own) is not pool
            run(own, "x = 1")
        pool_of(own).close()

    in_child(use)
    with Sandbox(runtime=local, pool=1) as box:
        assert box.name == names(local)[1]
    pool.close()


PROGRAM = """
import os, sys, time
from rlm_containers import Sandbox, SandboxPool
from tests.unit.guests import LocalRuntime
pool = SandboxPool(runtime=LocalRuntime(), size=2).fill()
while pool.waiting < 2:
    time.sleep(0.02)
box = pool.acquire()
print(*[process.pid for process in pool.options.runtime.processes], flush=True)
print(*[spec.name for spec in pool.options.runtime.specs], flush=True)
"""


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)", "raise SystemExit"])
def test_the_end_of_the_process_leaves_nothing(end: str) -> None:
    done = subprocess.run(
        (sys.executable, "-c", PROGRAM + end),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.stderr == ""
    pids, made = (line.split() for line in done.stdout.splitlines())
    for pid in pids:
        assert ended(int(pid))
    left = [
        directory / name
        for directory in (workspaces_directory(), passing_snapshots_directory())
        for name in made
    ]
    assert eventually(lambda: not any(path.exists() for path in left))
    assert eventually(lambda: not any(processes(name) for name in made))  # the reapers


# In an event loop


def test_it_works_in_an_event_loop(make_pool: MakePool) -> None:
    pool = filled(make_pool())

    async def use() -> None:
        async with pool.asandbox() as box:
            assert (await box.aexecute("print(1)")).stdout == "1\n"
        box = await pool.aacquire(timeout=TIMEOUT, tools={"f": lambda: 2})
        async with box:
            assert (await box.aexecute("print(f())")).stdout == "2\n"
        await pool.aclose()

    asyncio.run(asyncio.wait_for(use(), TIMEOUT))


def test_who_waits_for_room_may_be_cancelled(make_pool: MakePool) -> None:
    pool = make_pool(max_size=1)

    async def use() -> None:
        async with pool.asandbox():
            waiting = asyncio.ensure_future(pool.aacquire())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with pool.asandbox(timeout=TIMEOUT):
            pass

    asyncio.run(asyncio.wait_for(use(), TIMEOUT))
