"""Images with other Pythons, with packages of their own, and with none."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from rlm_containers import Sandbox
from tests.behaviour.values import CLEAR, VALUES, assert_seen, define
from tests.support import Engine, eventually, execute, printed

pytestmark = pytest.mark.container

VERSIONS = ("3.9", "3.10", "3.12", "3.13")


@pytest.fixture(scope="module", params=VERSIONS)
def old_or_new(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox with one of the Pythons that this project promises."""
    image = engine.image(request.param)
    with Sandbox(image, runtime=engine.runtime, lm=str.upper) as box:
        assert box.python_version is not None
        assert box.python_version.startswith(f"{request.param}.")
        yield box


def version(box: Sandbox) -> tuple[int, int]:
    assert box.python_version is not None
    major, minor = box.python_version.split(".")[:2]
    return int(major), int(minor)


def test_cells(old_or_new: Sandbox) -> None:
    box = old_or_new
    assert printed(box, "import sys\nprint(*sys.version_info[:2], sep='.')") == (
        ".".join(map(str, version(box))) + "\n"
    )
    assert printed(box, "import os\nprint(1, end=' ')\nos.system('echo 2')") == "1 2\n"
    result = box.execute("def f():\n    return 1 / 0\nf()")
    assert result.status == "error"
    assert "    return 1 / 0\n" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "rlm_guest" not in result.stderr
    assert box.execute("x = 'x' * 50_000_000").locals["x"].startswith("'xxx")
    assert box.execute("import sys; sys.exit(2)").status == "exit"
    assert box.execute("if x\n    y").stderr.splitlines()[-1].startswith("SyntaxError: ")
    printed(box, "del x")


def test_branches(old_or_new: Sandbox) -> None:
    printed(old_or_new, "x = [1]; numbers = (n for n in range(9))")
    with old_or_new.branch(2) as branches:
        for branch in branches:
            result = branch.execute("x.append(2)\nprint(x, next(numbers), llm_query('a'))")
            assert (result.stdout, result.stderr) == ("[1, 2] 0 A\n", "")
        branches[1].keep()
    assert printed(old_or_new, "print(x, next(numbers), llm_query('a'))") == "[1, 2] 1 A\n"
    printed(old_or_new, "del x, numbers")


def test_commands(old_or_new: Sandbox) -> None:
    result = old_or_new.command("cat; echo err >&2; exit 3", input=b"\xffin")
    assert (result.stdout, result.stderr, result.exit_code) == (b"\xffin", b"err\n", 3)
    assert old_or_new.command(["no-such-program"]).exit_code == 127
    left = "(setsid sleep 1000 & echo $! > pid); until [ -s pid ]; do sleep 0.02; done"
    assert old_or_new.command(left + "; sleep 1000", timeout=2).status == "timeout"
    assert eventually(lambda: old_or_new.command("kill -0 $(cat pid)").status == "error")


def test_chained_exceptions(old_or_new: Sandbox) -> None:
    result = old_or_new.execute(
        "try:\n    1 / 0\nexcept ValueError:\n    pass\nfinally:\n    {}[1]"
    )
    assert "During handling of the above exception" in result.stderr
    assert result.stderr.endswith("KeyError: 1\n")
    assert "rlm_guest" not in result.stderr


def test_llm_query(old_or_new: Sandbox) -> None:
    assert old_or_new.lm_route == "http"
    assert printed(
        old_or_new,
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            print(llm_query('a'), llm_query_batched(['b', 'c']))
            print(''.join(pool.map(llm_query, 'xyz')))
        del pool
        """,
    ) == "A ['B', 'C']\nXYZ\n"  # fmt: skip


def test_interrupts(old_or_new: Sandbox) -> None:
    result = old_or_new.execute(
        "import time\nprint('in')\ntime.sleep(30)", on_output=lambda *_: old_or_new.interrupt()
    )
    assert result.status == "interrupted"


def test_everything_is_restored(old_or_new: Sandbox) -> None:
    box = old_or_new
    printed(box, CLEAR)
    values = [value for value in VALUES if version(box) >= value.since]
    define(box, values)
    result = box.execute("import os; os._exit(1)")
    assert (result.status, result.lost) == ("died", ())
    assert_seen(box, values)


def test_a_context(old_or_new: Sandbox) -> None:
    old_or_new.load("context_0", "text \ud800 \0" * 100_000)
    old_or_new.load("context_1", [{"a": 1}])
    assert printed(old_or_new, "print(len(context), context_1)") == "800000 [{'a': 1}]\n"


def test_dill_and_requests_are_there(old_or_new: Sandbox) -> None:
    assert printed(old_or_new, "import dill\nprint(dill.loads(dill.dumps(lambda: 5))())") == "5\n"
    result = old_or_new.execute("import requests\nprint(requests.get.__name__)")
    if version(old_or_new) >= (3, 10):
        assert (result.stdout, result.stderr) == ("get\n", "")
    else:
        # The host's copy does not run on a Python that old: better none than one that breaks.
        assert result.stderr.endswith("ModuleNotFoundError: No module named 'requests'\n")


WHERE = """
import importlib.metadata, json, sys
found = {}
for name in ('dill', 'requests', 'urllib3', 'certifi', 'idna'):
    found[name] = [__import__(name).__file__, importlib.metadata.version(name)]
print(json.dumps(found))
"""


@pytest.mark.parametrize("python", ["3.9", "3.11", "3.13"])
def test_the_images_own_requests_wins_and_our_dill(engine: Engine, python: str) -> None:
    image = engine.image(python, "dill", "requests")
    with Sandbox(image, runtime=engine.runtime, lm=str.upper) as box:
        found = json.loads(printed(box, WHERE))
        ours = {name for name, (file, _) in found.items() if file.startswith("/opt/rlm-containers")}
        assert ours == {"dill"}  # another version might save the variables in another way
        printed(box, "kept = lambda: 'kept'")
        assert box.execute("import os; os._exit(1)").lost == ()
        assert printed(box, "print(kept(), llm_query('x'))") == "kept X\n"


def test_the_hosts_packages_where_the_image_has_none(box: Sandbox) -> None:
    assert printed(box, "import requests\nprint(requests.__file__)").startswith(
        "/opt/rlm-containers/"
    )
    # Nothing was installed: no pip is needed for it, nor found.
    assert printed(box, "import dill, sys\nprint(any('pip' in name for name in sys.modules))") == (
        "False\n"
    )


def test_no_network_is_needed(engine: Engine) -> None:
    for python in ("3.9", "3.13"):
        with Sandbox(
            engine.image(python), runtime=engine.runtime, lm=str.upper, network="none"
        ) as box:
            assert box.lm_route == "pipe"
            assert printed(box, "print(llm_query('x'))\nimport dill") == "X\n"
            assert execute(box, "import os; os._exit(1)").status == "died"
            assert printed(box, "print(llm_query('y'))") == "Y\n"
