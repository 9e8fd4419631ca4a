"""Pools on engines: nothing of one sandbox is in the next, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox, SandboxPool
from rlm_containers.errors import SandboxLostError
from tests.support import TIMEOUT, Engine, assert_gone, eventually, printed, processes

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool(engine: Engine) -> Iterator[SandboxPool]:
    with SandboxPool(engine.image(), runtime=engine.runtime, size=2) as pool:
        yield pool


def filled(pool: SandboxPool) -> SandboxPool:
    assert eventually(lambda: pool.waiting == 2)
    return pool


# The marker is put together when the cell runs, so that its source does not have it.
PLANT = """
import builtins, ctypes, os, subprocess, sys, threading
marker = 'plant' + 'ed-' + 'by-the-one-before'
variable = [marker]
builtins.planted = marker
sys.modules['planted_module'] = marker
os.environ['PLANTED'] = marker
for place in ('/workspace', '/tmp', '/dev/shm', '/var/tmp'):
    with open(f'{place}/{marker}', 'w') as file:
        file.write(marker)
subprocess.Popen(['sh', '-c', 'sleep 1000; exit', marker], start_new_session=True)
threading.Thread(target=threading.Event().wait, name=marker, daemon=True).start()
libc = ctypes.CDLL(None)
memory = libc.shmget(0x706c616e, 4096, 0o1666)
libc.shmat.restype = ctypes.c_void_p
ctypes.memmove(libc.shmat(memory, None, 0), marker.encode(), len(marker))
print(memory >= 0, libc.semget(0x706c616e, 1, 0o1666) >= 0, libc.msgget(0x706c616e, 0o1666) >= 0)
"""

# No text of this cell matches the pattern, which has the marker in its heap only as a pattern.
SEARCH = r"""
import builtins, os, re, sys, threading
pattern = re.compile(rb'plante[d]-by-the-on[e]')
found = []
def look(what, content):
    if pattern.search(content):
        found.append(what)
def read(path, size=-1):
    try:
        with open(path, 'rb') as file:
            return file.read(size)
    except OSError:
        return b''
found += [name for name in ('variable', 'planted') if name in globals() or hasattr(builtins, name)]
found += [name for name in ('planted_module',) if name in sys.modules]
look('environment', repr(dict(os.environ)).encode())
look('threads', repr(threading.enumerate()).encode())
for place in ('/workspace', '/tmp', '/dev/shm', '/var/tmp'):
    for top, folders, files in os.walk(place):
        for name in folders + files:
            look(f'file {top}/{name}', name.encode() + read(os.path.join(top, name), 1 << 20))
for pid in filter(str.isdigit, os.listdir('/proc')):
    for name in ('cmdline', 'environ'):
        look(f'{name} of {pid}', read(f'/proc/{pid}/{name}'))
for kind in ('shm', 'sem', 'msg'):
    lines = read(f'/proc/sysvipc/{kind}').decode().splitlines()[1:]
    found += [f'{kind} {line}' for line in lines if int(line.split()[0]) == 0x706c616e]
# Given backwards, and looked for letter by letter: else it would find itself.
token = b''.join(b'[%c]' % letter for letter in reversed(b'TOKEN'))
searched = 0
with open('/proc/self/mem', 'rb', 0) as memory:
    for line in open('/proc/self/maps'):
        area, rights = line.split()[:2]
        if rights[:2] == 'rw':
            start, end = (int(part, 16) for part in area.split('-'))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except (OSError, OverflowError):
                continue
            searched += len(content)
            if token and re.search(token, content):
                found.append(f'the token {line}')
            if pattern.search(content):
                found.append(f'memory {line}')
print(found, searched > 1_000_000)
"""


def token_of(box: Sandbox) -> str:
    code = "import sys\nprint(sys.modules['rlm_guest.lm']._route.authorization.split()[1])"
    return printed(box, code).strip() if box.lm_route == "http" else ""


def search(box: Sandbox, token: str = "") -> str:
    return printed(box, SEARCH.replace("TOKEN", token[::-1]))


def test_nothing_of_one_sandbox_is_in_another(pool: SandboxPool) -> None:
    env = {"SECRET": "planted-by-the-one-before"}
    with filled(pool).sandbox(env=env, lm=str.upper) as first:
        printed(first, "print(llm_query('x'))")
        token = token_of(first)
        assert printed(first, PLANT) == "True True True\n"
        found = search(first, token)  # the search finds what is there
        for what in ("variable", "planted_module", "environment", "threads", "file /dev/shm"):
            assert what in found
        for what in ("memory", "cmdline", "shm", "sem", "msg", "the token" if token else ""):
            assert what in found
        with filled(pool).sandbox(lm=str.lower) as beside:  # while the first still runs
            assert search(beside, token) == "[] True\n"
    with filled(pool).sandbox(lm=str.lower) as after:
        assert search(after, token) == "[] True\n"


def test_a_sandbox_is_as_one_without_a_pool(pool: SandboxPool, engine: Engine) -> None:
    code = """
    import os, sys
    print(sorted(globals()))
    print(sys.path, sys.flags, sys.executable, os.getcwd(), os.getuid(), os.getgid())
    print(sorted((k, v) for k, v in os.environ.items() if k != 'HOSTNAME'))
    print(sorted(os.listdir('/workspace')), sorted(os.listdir('/proc/self/fd')))
    """
    with Sandbox(engine.image(), runtime=engine.runtime) as plain, filled(pool).sandbox() as pooled:
        assert printed(pooled, code) == printed(plain, code)
        assert pooled.python_version == plain.python_version
        (inspected,) = engine.containers(pooled.name)
        assert inspected["State"]["Running"]


def test_the_model_is_reached_as_without_a_pool(pool: SandboxPool, engine: Engine) -> None:
    with (
        Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as plain,
        filled(pool).sandbox(lm=str.lower) as pooled,
    ):
        assert printed(pooled, "print(llm_query('ABC'))") == "abc\n"
        assert printed(plain, "print(llm_query('abc'))") == "ABC\n"
        assert pooled.lm_route == plain.lm_route


def test_a_container_that_was_removed_is_replaced(pool: SandboxPool, engine: Engine) -> None:
    waiting = [container.name for container in filled(pool)._pool._waiting]
    engine.run("rm", "--force", waiting[0])
    with pool.sandbox() as box:
        assert box.name == waiting[1]
        printed(box, "x = 1")


def test_a_container_goes_on_without_the_client_that_has_started_it(
    pool: SandboxPool, engine: Engine
) -> None:
    with filled(pool).sandbox(lm=str.upper) as box:
        pipe = box._life.running.interpreter.pipe
        assert pipe.process.stdout == -1
        assert not [line for _, line in processes(box.name) if f"--name={box.name}" in line]
        assert printed(box, "print(llm_query('on'))") == "ON\n"
        engine.run("kill", box.name)
        with pytest.raises(SandboxLostError, match="status 137"):
            box.execute("import time\ntime.sleep(60)")
    assert_gone(engine, box.name)


PROGRAM = """
import os, sys, time
from rlm_containers import SandboxPool
pool = SandboxPool(sys.argv[1], runtime=sys.argv[2], size=2).fill()
while pool.waiting < 2:
    time.sleep(0.05)
box = pool.acquire()
box.execute("open('file', 'w').write('x')")
print(box.name, *[container.name for container in pool._pool._waiting], flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_host_leaves_nothing(engine: Engine) -> None:
    done = subprocess.run(
        (sys.executable, "-c", PROGRAM, engine.image(), engine.runtime),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=4 * TIMEOUT,
        check=False,
    )
    made = done.stdout.split()
    assert len(made) >= 2, done.stderr
    assert_gone(engine, *made)
