"""What happens to a cell's files and exit functions when a sandbox closes."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime, await_end

LEAVE = """
import atexit, gzip, os, sys, threading, zipfile
os.chdir({target!r})
atexit.register(lambda: open('atexit.txt', 'w').write('bye'))
text = open('open.txt', 'w')
text.write('buffered')
raw = open('open.bin', 'wb')
raw.write(b'bytes')
zipped = gzip.open('open.gz', 'wt')
zipped.write('zipped')
archive = zipfile.ZipFile('open.zip', 'w')
archive.writestr('member', 'content')
sys.modules['hidden'] = open('hidden.txt', 'w')
sys.modules['hidden'].write('held by no variable')
"""


@pytest.mark.parametrize(
    "also",
    [
        "",
        "threading.Thread(target=threading.Event().wait).start()",
        "atexit.register(lambda: 1 / 0)\natexit.register(sys.exit)",
        "sys.stdout.close()",
        "open('long', 'w').write(str([{} for _ in range(10_000)]))",
    ],
    ids=["plain", "thread", "exit", "stdout", "checkpoint"],
)
def test_files_are_flushed_and_exit_functions_run(
    local: LocalRuntime, tmp_path: Path, also: str
) -> None:
    with Sandbox(runtime=local) as box:
        assert box.execute(LEAVE.format(target=str(tmp_path)) + also).status == "ok"
    assert (tmp_path / "atexit.txt").read_text() == "bye"
    assert (tmp_path / "open.txt").read_text() == "buffered"
    assert (tmp_path / "open.bin").read_bytes() == b"bytes"
    assert gzip.decompress((tmp_path / "open.gz").read_bytes()) == b"zipped"
    assert zipfile.ZipFile(tmp_path / "open.zip").read("member") == b"content"
    assert (tmp_path / "hidden.txt").read_text() == "held by no variable"


def test_an_exit_function_that_does_not_end_is_not_waited_for(local: LocalRuntime) -> None:
    with Sandbox(runtime=local) as box:
        box.execute("import atexit, threading; atexit.register(threading.Event().wait)")
        box.execute("import sys; atexit.register(lambda: print('x' * 10 ** 6))")
        pids = [process.pid for process in local.processes]
    assert all(await_end(pid) for pid in pids)
