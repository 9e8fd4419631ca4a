"""What code in a container cannot do, unless it is told otherwise."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import Engine, printed

STATUS = "dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines())"


def test_who_a_cell_is(box: Sandbox) -> None:
    assert printed(
        box,
        """
        import os
        print(0 in os.getresuid(), 0 in os.getresgid(), 0 in os.getgroups())
        """,
    ) == "False False False\n"  # fmt: skip


@pytest.mark.parametrize("capabilities", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_a_cell_has_no_capabilities(box: Sandbox, capabilities: str) -> None:
    assert int(printed(box, f"print(({STATUS})['{capabilities}'])"), 16) == 0


def test_what_goes_over_the_pipe_is_not_logged(engine: Engine, box: Sandbox) -> None:
    # A container would fill the disk of the host with it, and it may hold secrets.
    printed(box, "print('x' * 100_000)")
    (container,) = engine.containers(box.name)
    assert container["HostConfig"]["LogConfig"]["Type"] == "none"
    logs = engine.run("logs", box.name, check=False)
    assert "xxxx" not in logs.stdout + logs.stderr


def test_a_cell_gets_no_privileges(box: Sandbox) -> None:
    assert printed(box, f"print(({STATUS})['NoNewPrivs'])") == "1\n"


@pytest.mark.parametrize(
    "crime",
    [
        "os.mkdir('/opt/rlm-containers')",
        "os.utime('/opt')",
        "open('/etc/passwd', 'a')",
        "open('/new', 'w')",
        "os.setuid(0)",
        "os.chown('/workspace', 0, 0)",
        "os.mknod('/workspace/disk', 0o60666, os.makedev(8, 0))",
        "os.kill(1, 9) or 1 / 0",
        "os.chroot('/workspace')",
        "os.sethostname('mine') if hasattr(os, 'sethostname') else os.setgroups([0])",
        "__import__('socket').socket(17, 3, 3)",
    ],
)
def test_crimes(box: Sandbox, crime: str) -> None:
    result = box.execute(f"import os\n{crime}")
    assert result.status == "error"
    # Its last line is what the system says; a crime that succeeds divides by zero, or is silent.
    assert any(e in result.stderr for e in ("Error: [Errno", "ZeroDivisionError"))
    assert printed(box, "print('on')") == "on\n"


def test_where_a_cell_can_write(box: Sandbox) -> None:
    assert printed(
        box,
        """
        import os, pathlib, tempfile
        pathlib.Path('here.txt').write_text('w')
        pathlib.Path.home().joinpath('home.txt').write_text('h')
        with tempfile.TemporaryFile() as file:
            file.write(b't')
        print(os.getcwd(), pathlib.Path.home())
        """,
    ) == "/workspace /workspace\n"  # fmt: skip


def test_no_network(make_box: MakeBox) -> None:
    box = make_box(network="none")
    assert printed(
        box,
        """
        import os, socket
        print(os.listdir('/sys/class/net'))
        try:
            socket.create_connection(('1.1.1.1', 53), 5)
        except OSError as error:
            print('refused')
        """,
    ) == "['lo']\nrefused\n"  # fmt: skip


def test_run_args_of_the_user(make_box: MakeBox) -> None:
    box = make_box(run_args=["--hostname=chosen", "--shm-size=8m"])
    assert printed(box, "import socket; print(socket.gethostname())") == "chosen\n"
    assert "size=8192k" in printed(
        box, "print(*(m for m in open('/proc/mounts') if '/dev/shm' in m))"
    )


def test_modules_of_the_workspace_do_not_shadow_the_guests(make_box: MakeBox) -> None:
    # What a cell writes is there when the next worker starts, in its working directory.
    box = make_box(lm=str.upper)
    names = "'json', 'dill', 'socket', 'http', 'pickle', 'linecache', 'rlm_guest', 'worker', 'os'"
    printed(
        box,
        f"""
        kept = [1]
        for name in ({names}):
            open(name + '.py', 'w').write('raise RuntimeError("shadowed")')
        """,
    )
    result = box.execute("import os; os._exit(1)")
    assert (result.status, result.lost) == ("died", ())
    assert "shadowed" not in result.stderr
    assert printed(box, "print(kept, llm_query('x'))") == "[1] X\n"
