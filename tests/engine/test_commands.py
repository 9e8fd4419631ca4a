"""Commands where engines may differ: other users, strict isolation, limits, and what is left."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rlm_containers.errors import SandboxLostError
from tests.conftest import MakeBox
from tests.engine.test_limits import HOG, enforces
from tests.support import TIMEOUT, Engine, eventually, printed

#: Whom a container may run as: any, where root may give a directory away or Podman maps ids.
SOMEBODY = os.getuid() or 1234


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"network": "none"},
        {"isolation": "strict"},
        {"user": f"{SOMEBODY}:{SOMEBODY}"},
        {"user": "0:0"},
    ],
    ids=["default", "no network", "strict", "a user", "root"],
)
def test_it_is_as_confined_as_a_cell(
    engine: Engine, make_box: MakeBox, options: dict[str, Any]
) -> None:
    if not enforces(engine):
        options = {"memory": None, "pids": None, **options}
    box = make_box(env={"OF_THE_SANDBOX": "its own"}, **options)
    program = (
        "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd(), "
        "os.environ['OF_THE_SANDBOX'], os.environ['HOME'], "
        "[line for line in open('/proc/self/status') if line.startswith(('Cap', 'NoNewPrivs', "
        "'Seccomp:'))], open('/proc/mounts').read(), sorted(os.listdir('/sys/class/net')))"
    )
    assert box.command(["python3", "-c", program]).stdout.text == printed(box, program)
    wrote = box.command("echo mine > file; cat file; touch /usr/file 2>/dev/null || echo refused")
    assert wrote.stdout.text.splitlines()[0] == "mine"
    assert box.get_file("file") == b"mine\n"
    if options.get("isolation") == "strict":
        assert "refused" in wrote.stdout.text


def test_daemons_end_with_a_time_limit_and_with_the_sandbox(
    engine: Engine, make_box: MakeBox
) -> None:
    box = make_box()
    left = (
        "(setsid sh -c 'echo $$ > {0}; exec sleep 1000' &); until [ -s {0} ]; do sleep 0.02; done"
    )
    result = box.command(left.format("late") + "; sleep 1000", timeout=3)
    assert result.status == "timeout"
    assert eventually(lambda: box.command("kill -0 $(cat late)").status == "error")
    # This one outlives its command. make_box checks that nothing outlives the sandbox.
    assert box.command(left.format("left")).status == "ok"
    assert box.command("kill -0 $(cat left)").status == "ok"


def test_one_that_takes_too_much_memory(engine: Engine, make_box: MakeBox) -> None:
    if not enforces(engine):
        pytest.skip("this engine enforces no limits")
    box = make_box(memory="128m")
    printed(box, "kept = 'kept'")
    result = box.command(["python3", "-c", HOG])
    assert (result.status, result.exit_code) == ("killed", 137)
    assert "was killed for its memory" in result.notices[0]
    assert "128 MiB" in result.notices[0]
    assert printed(box, "print(kept)") == "kept\n"
    assert box.command("echo on").notices == ()


def test_no_room_for_another_process(engine: Engine, make_box: MakeBox) -> None:
    if not enforces(engine):
        pytest.skip("this engine enforces no limits")
    box = make_box(pids=20)
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: box.command("sleep 1000", timeout=5), range(20)))
    assert {result.status for result in results} == {"timeout", "error"}
    refused = next(result for result in results if result.status == "error")
    assert refused.exit_code in (126, 2, 254)  # by us, or by the shell
    assert box.command("echo on").stdout == b"on\n"


def test_the_container_is_removed(engine: Engine, make_box: MakeBox) -> None:
    box = make_box()
    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(box.command, f"echo > begun{number}; sleep 1000") for number in range(2)
        ]
        assert eventually(lambda: len(box.list_files()) == 2)
        engine.run("rm", "--force", box.name)
        for future in running:
            with pytest.raises(SandboxLostError, match="container is gone"):
                future.result(TIMEOUT)
    with pytest.raises(SandboxLostError):
        box.command("true")
