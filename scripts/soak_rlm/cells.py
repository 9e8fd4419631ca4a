"""The cells of a soak, and the values that they must leave in the variables."""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlm_containers import CellResult, Sandbox
from rlm_containers.errors import SandboxForkedError
from tests.support import Engine


class Model:
    """The expected values of a session's variables.

    Attributes:
        values: what :data:`LOOK` must print after the last acknowledged cell.
        before: the same before the last change. A damaged checkpoint may bring it back.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "n": 0, "items": 0, "alias": True, "long": 0, "last": None, "context": 0,
            "large": 0, "mark": None,
        }  # fmt: skip
        self.before = dict(self.values)

    def becomes(self, **changed: Any) -> None:
        """Take note of a cell's changes. The same values again need no checkpoint, and are none."""
        if changed.items() <= self.values.items():
            return
        self.before = dict(self.values)
        self.values.update(changed)

    def agrees(self, found: dict[str, Any], *, damaged: bool) -> bool:
        """Whether the values are right. A damaged checkpoint may bring back those before."""
        if damaged and found == self.before:
            self.values = dict(self.before)
        self.before = dict(self.values) if damaged else self.before
        return found == self.values


#: Prints the variables, for comparison with the model.
LOOK = """
import json
print(json.dumps({
    "n": n, "items": len(items), "alias": items is alias, "long": len(long),
    "last": items[-1] if items else None, "context": len(globals().get("context", "")),
    "large": len(large), "mark": large[-1][0] if large else None,
}))
"""

#: The first cells. There are two, so that the previous checkpoint is complete as well.
BEGIN = (
    "n = 0\nitems = []\nalias = items\nlong = ''\nlarge = []\ndef step(by): return n + by",
    "ready = True",
)

#: Starts a thread and binds nothing. No heir can go on beside it.
THREAD = (
    "__import__('threading').Thread("
    "target=__import__('time').sleep, args=(9999,), daemon=True).start()"
)


@dataclass(frozen=True)
class Kind:
    """One kind of cell.

    Attributes:
        name: its name in the figures.
        run: runs it and updates the model.
        weight: its frequency, relative to the other kinds.
        statuses: the statuses that it may end with.
        ends: whether it may end the sandbox.
    """

    name: str
    run: Callable[[Sandbox, Model, random.Random, Engine], CellResult | None]
    weight: int
    statuses: tuple[str, ...] = ("ok",)
    ends: bool = False


# Work


def _count(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    by = chance.randrange(1, 100)
    result = box.execute(f"n = step({by})\nitems.append(n)")
    if result.status == "ok":
        value = model.values["n"] + by
        model.becomes(n=value, items=model.values["items"] + 1, last=value)
    return result


def _long(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    lengths = (10, 1000, 300_000, 2_000_000, 300_000_000)
    (length,) = chance.choices(lengths, (6, 6, 6, 6, 1))
    result = box.execute(f"long = 'x' * {length}")
    if result.status == "ok":
        model.becomes(long=length)
    return result


def _large(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    """Make or drop a state that heirs save."""
    (size,) = chance.choices((0, 50_000, 200_000, 1_000_000), (6, 6, 6, 1))
    result = box.execute(f"large = [[n] for n in range({size})]")
    if result.status == "ok":
        model.becomes(large=size, mark=size - 1 if size else None)
    return result


def _mark(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult | None:
    """Change a large state a few times without a pause, with trivial cells in between."""
    if not model.values["large"]:
        return None
    for _ in range(chance.randrange(1, 5)):
        mark = chance.randrange(1000)
        result = box.execute(f"large[-1][0] = {mark}")
        if result.status != "ok":
            return result
        model.becomes(mark=mark)
        n = chance.randrange(1000)
        result = box.execute(f"n = {n}")
        if result.status != "ok":
            return result
        model.becomes(n=n)
    return result


def _ask(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    count = chance.randrange(1, 20)
    result = box.execute(f"print(llm_query_batched([f'prompt {{i}}' for i in range({count})])[-1])")
    assert result.stdout == f"PROMPT {count - 1}\n", result
    assert len(result.lm_calls) == count
    return result


def _print(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    result = box.execute("import os\nfor i in range(300): print('y' * 5000)\nos.system('echo end')")
    assert result.stdout.endswith("end\n")
    return result


def _load(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> None:
    length = chance.choice((0, 100, 1_000_000))
    box.load("context_0", "c" * length)
    model.becomes(context=length)


def _fail(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    return box.execute(chance.choice(("1 / 0", "def f(:", "raise KeyboardInterrupt", "input()")))


def _leave(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    return box.execute("import sys; sys.exit(3)")


# Faults


def _die(code: str) -> Callable[[Sandbox, Model, random.Random, Engine], CellResult]:
    def run(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
        return box.execute(f"import os, ctypes, signal\nn = -1\nitems.append(-1)\n{code}")

    return run


def _loop(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    result = box.execute("while True: pass")
    assert "cell_timeout" in result.stderr
    return result


def _damage(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    # The one before comes back, and that is said by name, where it is needed.
    # An heir may have left checkpoints out, so there must be two first.
    assert box.unsaved == ()
    _count(box, model, chance, engine)
    assert box.unsaved == ()
    result = box.execute(
        f"import os\nsize = os.path.getsize('state.dill')\n"
        f"os.truncate('state.dill', size * {chance.randrange(10)} // 10)\nos._exit(1)"
    )
    if not result.older and not result.lost:
        return result  # an heir has taken over, which does not need the file
    assert "state.dill could not be used" in result.stderr, result.stderr
    assert "n" in result.older
    return result


def _kill(whose: str) -> Callable[[Sandbox, Model, random.Random, Engine], CellResult]:
    def run(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
        return box.execute(f"import os\nos.kill(os.{whose}(), 9)\nimport time; time.sleep(30)")

    return run


def _garbage(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    raw = chance.randbytes(chance.randrange(1, 200))
    return box.execute(
        f"""
import os, time
top = f"/proc/{{os.getppid()}}/fd"
for name in os.listdir(top):
    try: os.write(os.open(f"{{top}}/{{name}}", os.O_WRONLY | os.O_NONBLOCK), {raw!r})
    except OSError: pass
time.sleep(0.2)
os.kill(os.getppid(), 9)
time.sleep(30)
"""
    )


def _remove(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    engine.run("rm", "--force", box.name, check=False)
    for _ in range(1000):
        result = box.execute("pass")
    return result


def _kill_client(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    listing = subprocess.run(
        ("pgrep", "--full", "--parent", str(os.getpid()), f"run .*--name={box.name}"),
        capture_output=True,
        text=True,
        check=False,
    )
    for pid in listing.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    for _ in range(1000):
        result = box.execute("pass")
    return result


def _close(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    """Close the sandbox in a signal handler, at a random moment of its cells."""
    sender = threading.Timer(chance.random(), TO_CLOSE.send, (box,))
    sender.start()
    try:
        while True:
            box.execute("print('z' * 1000)")
    finally:
        sender.join()


def _fork_host(box: Sandbox, model: Model, chance: random.Random, engine: Engine) -> CellResult:
    """Fork this process. The child must not be able to use the sandbox, nor harm it by its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            box.execute("n = 0")
        except SandboxForkedError:
            box.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, "the child could use the sandbox"
    return _count(box, model, chance, engine)


class SignalsThatClose:
    """Signals to the main thread, whose handler closes a sandbox that another thread uses."""

    def __init__(self) -> None:
        self._boxes: collections.deque[Sandbox] = collections.deque()

    def send(self, box: Sandbox) -> None:
        self._boxes.append(box)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def handle(self, *_: object) -> None:
        while self._boxes:
            self._boxes.popleft().close()


TO_CLOSE = SignalsThatClose()

DIED = ("died",)

#: Variables of single cells, which a damaged checkpoint may be the only one to have.
PASSING = {
    "context",
    "context_0",
    "ready",
    "ctypes",
    "i",
    "json",
    "name",
    "os",
    "raw",
    "signal",
    "size",
    "sys",
    "time",
    "top",
}

WORK = (
    Kind("count", _count, 40),
    Kind("long string", _long, 10),
    Kind("ask", _ask, 10),
    Kind("large state", _large, 4),
    Kind("changes of it", _mark, 12),
    Kind("print 1.5 MB", _print, 4),
    Kind("load a context", _load, 4),
    Kind("exception", _fail, 6, ("error", "interrupted")),
    Kind("sys.exit()", _leave, 2, ("exit",)),
)

FAULTS = (
    Kind("os._exit()", _die("os._exit(1)"), 5, DIED),
    Kind("SIGKILL", _die("os.kill(os.getpid(), 9)"), 5, DIED),
    Kind("SIGSEGV", _die("ctypes.string_at(0)"), 2, DIED),
    Kind("a child that stays", _die("os.fork() or signal.pause()\nos._exit(1)"), 2, DIED),
    Kind("endless loop", _loop, 1, ("timeout",)),
    Kind("damaged state.dill", _damage, 3, DIED),
    Kind("supervisor killed", _kill("getppid"), 1, ends=True),
    Kind("garbage in the pipe", _garbage, 1, ends=True),
    Kind("container removed", _remove, 1, ends=True),
    Kind("client killed", _kill_client, 1, ends=True),
    Kind("closed by a signal handler", _close, 1, ends=True),
    Kind("fork of the host", _fork_host, 2, ("ok", "interrupted")),
)
