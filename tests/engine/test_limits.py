"""How much a sandbox may use, and what becomes of a cell that wants more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import BranchError, SandboxLostError, UnsupportedByEngineError
from tests.conftest import MakeBox
from tests.support import Engine, execute, printed, warnings_of

MEMORY = 128 * 1024**2

#: A variable that takes so long to save that heirs do it from then on.
SLOW = """
import time
class Slow:
    def __reduce__(self):
        time.sleep(0.1)
        return Slow, ()
slow = Slow()
"""

HOG = "hog = [bytes(1_000_000) + bytes([n % 256]) for n in range(1000)]"


def about(engine: Engine) -> dict[str, Any]:
    """What the engine's ``info`` says, asked of the engine itself."""
    style = "{{json .}}" if engine.name == "docker" else "json"
    said: dict[str, Any] = json.loads(engine.run("info", f"--format={style}").stdout)
    return said


def enforces(engine: Engine) -> bool:
    """Whether the engine holds containers to all of the limits."""
    said = about(engine)
    if engine.name == "docker":
        return all(said[key] for key in ("MemoryLimit", "CpuCfsQuota", "PidsLimit"))
    host = said["host"]
    usable = {"memory", "cpu", "pids"} <= set(host["cgroupControllers"])
    return usable and not (host["security"]["rootless"] and host["cgroupVersion"] == "v1")


@pytest.fixture(scope="module")
def limited(engine: Engine) -> Iterator[Sandbox]:
    """A sandbox with little of everything, on an engine that holds it to that."""
    if not enforces(engine):
        pytest.skip(f"{engine.name} enforces no limits here")
    with Sandbox(
        engine.image(),
        runtime=engine.runtime,
        memory="128m",
        cpus=0.75,
        pids=48,
        heirs="never",  # whether there are any depends on how fast the machine is
    ) as limited:
        yield limited


def host_config(engine: Engine, box: Sandbox) -> dict[str, Any]:
    (container,) = engine.containers(box.name)
    found: dict[str, Any] = container["HostConfig"]
    return found


# What the engine was told


def test_the_engine_knows_the_limits(engine: Engine, limited: Sandbox) -> None:
    config = host_config(engine, limited)
    assert (config["Memory"], config["MemorySwap"]) == (MEMORY, MEMORY)
    assert (config["PidsLimit"], config["NanoCpus"]) == (48, 750_000_000)


def test_the_defaults(engine: Engine, box: Sandbox) -> None:
    config = host_config(engine, box)
    if not enforces(engine):
        assert (config["Memory"], config["NanoCpus"]) == (0, 0)
        return
    said = about(engine)
    total = said["MemTotal"] if engine.name == "docker" else said["host"]["memTotal"]
    # Engines count in pages.
    assert total // 2 - 4096 <= config["Memory"] <= total // 2
    assert config["MemorySwap"] == config["Memory"]
    assert (config["PidsLimit"], config["NanoCpus"]) == (1024, 0)


def test_the_defaults_warn_of_nothing(make_box: MakeBox, caplog: pytest.LogCaptureFixture) -> None:
    make_box()
    assert not warnings_of(caplog)


def test_the_processors_time_is_limited(limited: Sandbox) -> None:
    assert printed(
        limited,
        """
        import os
        v1, v2 = '/sys/fs/cgroup/cpu/cpu.cfs_', '/sys/fs/cgroup/cpu.max'
        if os.path.exists(v2):
            quota, period = open(v2).read().split()
        else:
            quota, period = (open(v1 + name + '_us').read() for name in ('quota', 'period'))
        print(int(quota) / int(period))
        """,
    ) == "0.75\n"  # fmt: skip


# An engine that cannot


def test_an_engine_that_cannot_says_so(
    engine: Engine, make_box: MakeBox, caplog: pytest.LogCaptureFixture
) -> None:
    if enforces(engine):
        pytest.skip(f"{engine.name} enforces the limits here")
    box = make_box(memory="256m", cpus=0.5)
    (warning,) = warnings_of(caplog)
    assert "memory and cpus will not be enforced by podman: " in warning.getMessage()
    assert box.name in warning.getMessage()
    with pytest.raises(
        UnsupportedByEngineError, match=r"strict.*podman.*memory and pids"
    ) as caught:
        make_box(isolation="strict")
    assert "memory=None, pids=None" in caught.value.remedy


def test_a_disk_that_cannot_be_limited_is_an_error(engine: Engine, make_box: MakeBox) -> None:
    try:
        box = make_box(disk="64m")
    except UnsupportedByEngineError as error:
        assert "storage" in str(error) or "root" in str(error)  # noqa: PT017 - why, that is
        assert "strict" in error.remedy  # noqa: PT017
        return
    result = execute(
        box,
        """
        for number in range(8):
            with open(f'/tmp/{number}', 'wb') as file:
                file.write(bytes(16 * 1024**2))
        """,
    )
    assert "No space left" in result.stderr or "quota" in result.stderr


# Memory


def test_a_cell_that_takes_too_much_memory(limited: Sandbox) -> None:
    printed(limited, "kept = ['kept']")
    result = limited.execute(f"print('last words')\nnew = 1\n{HOG}\nprint('never')")
    assert (result.status, result.stdout, result.lost) == ("died", "last words\n", ())
    assert "The Python process of this sandbox was killed for its memory" in result.stderr
    assert "128 MiB" in result.stderr
    assert (result.locals["kept"], "new" in result.locals) == ("['kept']", False)
    assert printed(limited, "print(kept)") == "['kept']\n"


def test_again_and_again(limited: Sandbox) -> None:
    printed(limited, "count = 0")
    for number in range(1, 4):
        assert printed(limited, "count += 1\nprint(count)") == f"{number}\n"
        assert "for its memory" in limited.execute(HOG).stderr


def test_a_process_of_a_cell_that_takes_too_much_memory(limited: Sandbox) -> None:
    result = execute(
        limited,
        f"""
        import subprocess, sys
        print(subprocess.run([sys.executable, '-c', {HOG!r}]).returncode)
        """,
    )
    assert (result.status, result.stdout) == ("ok", "-9\n")
    assert result.stderr.startswith(
        "A process that a cell or a command started was killed for its memory"
    )
    assert "128 MiB" in result.stderr
    assert printed(limited, "print('on')") == "on\n"  # it is said once


@pytest.mark.parametrize("number", [9, 11])
def test_a_cell_that_dies_of_anything_else(limited: Sandbox, number: int) -> None:
    # Also right after another was killed for memory.
    limited.execute(HOG)
    result = limited.execute(f"import os, signal\nos.kill(os.getpid(), {number})")
    assert result.status == "died"
    assert "memory" not in result.stderr


def test_a_checkpoint_that_takes_too_much_memory(limited: Sandbox) -> None:
    printed(limited, "kept = 'kept'")
    printed(
        limited,
        """
        class Greedy:
            def __reduce__(self):
                return bytes, ([bytes(1_000_000) + bytes([n % 256]) for n in range(1000)],)
        greedy = Greedy()
        """,
    )
    result = limited.execute("print(kept, 'greedy' in globals())")
    assert (result.status, result.stdout) == ("ok", "kept False\n")
    assert "killed for its memory" in result.stderr
    assert "had not been saved yet" in result.stderr
    assert set(result.lost) == {"Greedy", "greedy"}


def test_a_writer_that_takes_too_much_memory(engine: Engine, make_box: MakeBox) -> None:
    if not enforces(engine):
        pytest.skip(f"{engine.name} enforces no limits here")
    box = make_box(memory="128m")
    greedy = """
    class Greedy:
        def __reduce__(self):
            return bytes, ([bytes(1_000_000) + bytes([n % 256]) for n in range(1000)],)
    """
    printed(box, SLOW)
    printed(box, greedy)
    assert not list(box.unsaved)
    printed(box, "kept = 'kept'; greedy = Greedy()")
    (unsaved,) = box.unsaved
    assert (unsaved.name, "SIGKILL" in unsaved.reason) == ("greedy", True)
    # It is no process of a cell's that was killed.
    assert printed(box, "print(kept, type(greedy).__name__)") == "kept Greedy\n"


def test_whom_the_kernel_takes_first(limited: Sandbox) -> None:
    assert printed(
        limited,
        """
        import os, subprocess
        print(open('/proc/self/oom_score_adj').read(), end='')
        print(open(f'/proc/{os.getppid()}/oom_score_adj').read(), end='')
        print(subprocess.run(['cat', '/proc/self/oom_score_adj'], capture_output=True).stdout)
        """,
    ) == "1000\n0\nb'1000\\n'\n"  # fmt: skip


def test_a_whole_container_that_is_killed_for_memory(engine: Engine, make_box: MakeBox) -> None:
    if not enforces(engine):
        pytest.skip(f"{engine.name} enforces no limits here")
    box = make_box(memory="128m")
    # As where the kernel is told to kill all of a cgroup at once (memory.oom.group).
    with pytest.raises(SandboxLostError, match=r"killed for its memory.*128 MiB") as caught:
        execute(
            box,
            f"""
            import os
            open(f'/proc/{{os.getppid()}}/oom_score_adj', 'w').write('1000')
            open('/proc/self/oom_score_adj', 'w').write('0')
            {HOG}
            """,
        )
    assert "removed by someone" not in caught.value.remedy


# Processes


def test_a_branch_that_takes_too_much_memory(limited: Sandbox) -> None:
    printed(limited, "x = [1]")
    with limited.branch(2) as branches:
        result = branches[0].execute(HOG)
        assert result.status == "died"
        assert "was killed for its memory (SIGKILL)" in result.stderr
        with pytest.raises(BranchError, match="killed for its memory"):
            branches[0].execute("x")
        other = branches[1].execute("x.append(2)\nprint(x)")
        assert (other.status, other.stdout) == ("ok", "[1, 2]\n")
        branches[1].keep()
    assert printed(limited, "print(x)") == "[1, 2]\n"


def test_more_branches_than_processes(limited: Sandbox) -> None:
    printed(limited, "x = [1]")
    with pytest.raises(BranchError, match="no room for more processes"):
        limited.branch(48)
    with limited.branch(2) as branches:
        assert branches[0].execute("print(x)").stdout == "[1]\n"
    assert printed(limited, "print(x)") == "[1]\n"


def test_a_fork_bomb(limited: Sandbox) -> None:
    result = execute(
        limited,
        """
        import os, signal
        children = 0
        try:
            while True:
                if os.fork() == 0:
                    signal.pause()
                children += 1
        except OSError as error:
            print(type(error).__name__, 20 < children < 48)
        """,
    )
    assert (result.status, result.stdout) == ("ok", "BlockingIOError True\n")
    # The container is full, and its next worker must get in all the same.
    assert limited.execute("import os\nos._exit(3)").status == "died"
    assert printed(
        limited, "import os\nprint(os.waitpid(os.fork() or os._exit(7), 0)[1] >> 8)"
    ) == ("7\n")


def test_no_room_for_an_heir_or_its_writer(engine: Engine, make_box: MakeBox) -> None:
    if not enforces(engine):
        pytest.skip(f"{engine.name} enforces no limits here")
    box = make_box(pids=32)
    printed(box, SLOW)
    assert box.unsaved == ()
    for free in (0, 1, 2):  # for the heir, and what it needs to begin
        fill = f"""
        import os, signal
        children = []
        try:
            while True:
                children.append(os.fork() or signal.pause())
        except OSError:
            pass
        for child in children[:{free}]:
            os.kill(child, 9)
            os.waitpid(child, 0)
        kept = [{free}]
        """
        printed(box, fill)
        printed(box, "kept.append(None)")
        assert box.unsaved == ()
        assert box.execute("import os; os._exit(3)").lost == ()
        assert printed(box, "print(kept)") == f"[{free}, None]\n"


def test_shared_memory(make_box: MakeBox) -> None:
    fill = """
        import mmap, os
        file = os.open('/dev/shm/filled', os.O_CREAT | os.O_RDWR)
        os.ftruncate(file, 80 * 1024 ** 2)
        memory = mmap.mmap(file, 0)
        for start in range(0, len(memory), 4096): memory[start] = 1
        print(len(memory))
        """
    with make_box(shm_size="96m") as box:
        assert printed(box, fill) == "83886080\n"
    with make_box(shm_size="1m") as box:
        result = execute(box, fill)
        assert result.status == "died"
        assert "SIGBUS: most often because /dev/shm is full (shm_size=…)" in result.notices[0]
