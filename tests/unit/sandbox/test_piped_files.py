"""Files that the host reaches through the pipe: what may come instead of them."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

import pytest

from rlm_containers.errors import ContainersError, SandboxLostError, WorkspaceError
from rlm_containers.interpreter import files
from rlm_containers.state import sessions_directory
from tests.support import eventually
from tests.unit.guests import LocalRuntime
from tests.unit.hostile import GREETING, READY, script
from tests.unit.sessions import Boxes, run

# Answers each operation with the records of a test.
ANSWERS = """
said = 2 * list(range(COUNT))
asked, figures = globals().get("asked", []), globals().get("figures", [])
def rec(kind, payload=b""):
    if not isinstance(payload, bytes):
        payload = json.dumps(payload).encode()
    return len(payload).to_bytes(4, "big") + kind + payload
def row(path="file", mode=0o100644, size=3, blocks=8, times=(1, 2), inode=3, links=1, target=None):
    return [path, mode, size, blocks, *times, inode, links, target]
def out(data, number):
    put(b"p", number + data)
def end(number, code=0):
    put(b"z", number + json.dumps({"exit": code}).encode())
while True:
    kind, payload = frame()
    if kind == b"m":
        say(op="result", id=json.loads(payload)["id"], status="ok", final_answer=None,
            locals={"asked": str(len(asked))}, artifacts=figures)
    elif kind in (b"x", b"q"):
        number = payload[:4]
        op = json.loads(payload[4:])["files"]["op"] if kind == b"x" else "kill"
        if op == "kill":
            put(b"z", number + b'{"signal": 9}')
            continue
        answer(op, number)
"""

LIES = [
    "rec(b'N', [row('../evil')])",
    "rec(b'N', [row('/etc/passwd')])",
    "rec(b'N', [row('a//b')])",
    "rec(b'N', [row('a/./b')])",
    "rec(b'N', [row('a\\0b')])",
    "rec(b'N', [row('')])",
    "rec(b'N', [row(size=-1)])",
    "rec(b'N', [row(size=1 << 70)])",
    "rec(b'N', [row(size=0.5)])",
    "rec(b'N', [row(mode=0o120777)])",
    "rec(b'N', [row(mode=0o120777, target='')])",
    "rec(b'N', [row(target='there')])",
    "rec(b'N', [row(mode=1 << 40)])",
    "rec(b'N', [row(mode=0o120777, target='\\ud800')])",
    "rec(b'N', [row('another')])",
    "rec(b'N', [row()[:5]])",
    "rec(b'N', [row() + [1]])",
    "rec(b'N', {'path': 'file'})",
    "rec(b'N', b'no json')",
    "rec(b'N', [[[]]])",
    "rec(b'D', b'data')",
    "rec(b'F', [0, 'file'])",
    "rec(b'F', 'text')",
    "rec(b'X', b'?')",
    "b'\\xff\\xff\\xff\\xffD'",
    "rec(b'N', [row(), row()])",
    "b''",
]


def answering(local: LocalRuntime, code: str, first: str = "", *, greeting: str = READY) -> None:
    """Let the next guest answer each operation on files by this code."""
    prelude = greeting + first + f"COUNT = {len(LIES)}\n"
    lines = "\n".join("    " + line for line in code.splitlines())
    script(local, prelude + f"def answer(op, number):\n{lines}\n" + ANSWERS)


@pytest.mark.parametrize("code", [0, 1])
def test_a_guest_that_lies_about_files(boxes: Boxes, code: int) -> None:
    lies = f"[{', '.join(LIES)}]"
    answering(boxes.local, f"out({lies}[said.pop(0)], number)\nend(number, {code})")
    box = boxes(workspace="memory")
    for lie in LIES:
        with pytest.raises(WorkspaceError) as caught:
            box.files.stat("file")
        assert box.name in str(caught.value), lie
    for lie in LIES:
        with pytest.raises(WorkspaceError):
            pytest.fail(f"{lie}: {box.files.read('file')!r}")


@pytest.mark.parametrize(
    "pieces",
    [
        "rec(b'D', b'four')",
        "rec(b'D', b'')",
        "rec(b'S', bytes(4))",
        "rec(b'N', [row()])",
        "rec(b'D', b'12') + rec(b'D', b'34')",
    ],
)
def test_files_that_are_not_what_they_said(boxes: Boxes, pieces: str) -> None:
    answering(boxes.local, f"out(rec(b'N', [row()]) + {pieces} + rec(b'E'), number)\nend(number)")
    with pytest.raises(WorkspaceError, match="did not answer as it should"):
        boxes(workspace="memory").files.read("file")


@pytest.mark.parametrize("path", ["other/file", "dir", ".", "dir/below/file", "directory/file"])
def test_a_list_of_what_is_elsewhere(boxes: Boxes, path: str) -> None:
    answering(boxes.local, f"out(rec(b'N', [row({path!r})]), number)\nend(number)")
    with pytest.raises(WorkspaceError, match="lists what is elsewhere"):
        boxes(workspace="memory").files.list("dir")


NAMES = """
under_way = 0
for i in range(400):
    data = rec(b"N", [row(f"{i}/" + 15 * ("d" * 250 + "/") + str(j)) for j in range(100)])
    for start in range(0, len(data), 60_000):
        piece = data[start : start + 60_000]
        out(piece, number)
        under_way += len(piece) + 256
        while under_way > 900_000:
            kind, payload = frame()
            if kind == b"q":
                return put(b"z", number + b'{"signal": 9}')
            under_way -= int.from_bytes(payload[4:], "big")
end(number)
"""


def test_names_that_take_much_memory(boxes: Boxes) -> None:
    answering(boxes.local, NAMES)
    with pytest.raises(WorkspaceError, match="characters together"):
        boxes(workspace="memory").files.list(recursive=True)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("row('file', size=1 << 50)", "grew while it was copied"),
        ("row('file', mode=0o40755)", "It is no file"),
    ],
)
def test_a_file_that_is_another_when_it_comes(
    boxes: Boxes, own_sessions: None, sent: str, message: str
) -> None:
    """What the host has room for is known by the list, and then more comes."""
    code = "if op == 'list': out(rec(b'N', [row()]), number)\n"
    code += f"if op == 'get': out(rec(b'N', [{sent}]), number)\n"
    code += "if op == 'get': out(50 * rec(b'D', bytes(1000)), number)\nend(number)"
    answering(boxes.local, code)
    box = boxes(workspace="memory", session="more")
    with pytest.raises(WorkspaceError, match=message):
        box.snapshot()
    assert list(sessions_directory().glob("more/workspace/*")) == []


def test_transfers_that_fail_do_not_fill_the_disk(boxes: Boxes, own_sessions: None) -> None:
    """Each time the guest has other files, and one that comes to an end, before it lies."""
    code = "asked.append(op)\nname = f'file {asked.count(\"list\")}'\n"
    code += "if op == 'list': out(rec(b'N', [row(name, size=800_000), row('last')]), number)\n"
    code += "if op == 'get': out(rec(b'N', [row(name, size=800_000)]), number)\n"
    code += "for _ in range(16 * (op == 'get')): out(rec(b'D', bytes(50_000)), number)\n"
    code += "if op == 'get': out(rec(b'E') + rec(b'S'), number)\nend(number)"
    answering(boxes.local, code)
    box = boxes(workspace="memory", workspace_size="1m", session="failing")
    most = 0
    for _ in range(5):
        with pytest.raises(WorkspaceError):
            box.snapshot()
        files = list(sessions_directory().glob("failing/workspace/file *"))
        most = max(most, len(files))
    assert most == 2


def test_files_that_become_shorter_are_fetched_again(boxes: Boxes, own_sessions: None) -> None:
    code = "if op == 'list': out(rec(b'N', [row(size=6)]), number)\n"
    code += "if op == 'get': out(rec(b'N', [row(size=6)]) + rec(b'D', piece.pop(0)), number)\n"
    code += "if op == 'get': out(rec(b'E'), number)\nend(number)"
    answering(boxes.local, code, "piece = [b'half', b'entire']\n")
    box = boxes(workspace="memory", session="short")
    file = sessions_directory() / "short/workspace/file"
    box.snapshot()
    assert file.read_text() == "half"
    box.snapshot()
    assert file.read_text() == "entire"


def test_times_of_any_age(boxes: Boxes, own_sessions: None) -> None:
    box = boxes(workspace="memory", session="times")
    run(box, "import os; open('old', 'w').write('1'); os.utime('old', ns=(-(10 ** 18), -1))")
    assert [file.modified for file in box.list_files()] == [0.0]
    box.snapshot()
    assert (sessions_directory() / "times/workspace/old").read_text() == "1"


def test_more_long_files_than_may_be_open(boxes: Boxes, own_sessions: None) -> None:
    box = boxes(workspace="memory", session="many")
    run(box, "for i in range(300): open(str(i), 'wb').truncate(600_000)")
    box.snapshot()
    run(box, "for i in range(300): open(str(i), 'ab').write(b'.')")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, hard))
    try:
        box.snapshot()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    path = sessions_directory() / "many/workspace/299"
    assert path.read_bytes()[600_000:] == b"."


def test_a_guest_that_dribbles(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is news, but not enough of it."""
    monkeypatch.setattr(files, "_IDLE_TIMEOUT", 1.0)
    code = "import time\nout(rec(b'N', [row(size=1 << 30)]), number)\n"
    code += "for _ in range(50):\n    out(rec(b'D', b'.'), number)\n    time.sleep(0.1)"
    answering(boxes.local, code)
    with pytest.raises(WorkspaceError, match="nothing, or too little"):
        boxes(workspace="memory").files.read("file", max_size=1 << 40)


def test_figures_of_a_guest_that_does_not_answer(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for one of them, not for hundreds."""
    monkeypatch.setattr(files, "_IDLE_TIMEOUT", 0.1)
    figures = "asked, figures = [], [f'{i}.png' for i in range(400)]\n"
    answering(boxes.local, "asked.append(op)", figures)
    box = boxes(workspace="memory")
    assert box.execute("x = 1").artifacts == ()
    assert box.execute("x = 2").locals == {"asked": "1"}


def test_an_error_is_named_by_this_hosts_words(boxes: Boxes) -> None:
    answering(boxes.local, "out(rec(b'F', [2, '\\x1b[2J evil']), number)\nend(number, 1)")
    with pytest.raises(WorkspaceError, match="No such file or directory") as caught:
        boxes(workspace="memory").files.read("file")
    assert "\x1b" not in str(caught.value)


def test_a_guest_that_sends_without_being_asked_for_more(boxes: Boxes) -> None:
    answering(boxes.local, "while True: out(rec(b'D', bytes(60_000)), number)")
    box = boxes(workspace="memory")
    with pytest.raises(ContainersError):
        box.files.list()


def test_a_process_that_dies(boxes: Boxes) -> None:
    answering(boxes.local, "put(b'P', number + b'killed \\x1b[0m')\nend(number, 1)")
    with pytest.raises(WorkspaceError, match="It said: killed ") as caught:
        boxes(workspace="memory").files.list()
    assert "\x1b" not in str(caught.value)


def test_files_that_have_no_room_here(
    boxes: Boxes, own_sessions: None, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "[row('a', size=1 << 50), row('b')]"
    answering(boxes.local, f"out(rec(b'N', {rows}) if op == 'list' else b'', number)\nend(number)")
    box = boxes(workspace="memory", workspace_size=None, memory=None, session="large")
    with caplog.at_level(logging.WARNING):
        box.close()
    assert "no room for a copy" in caplog.text
    assert list(sessions_directory().glob("large/workspace/*")) == []


def test_a_link_of_the_replica_is_not_followed(
    boxes: Boxes, own_sessions: None, tmp_path: Path
) -> None:
    """What was a directory is a link by now, and back."""
    target = tmp_path / "target"
    target.mkdir()
    box = boxes(workspace="memory", session="links")
    run(box, "import os; os.mkdir('dir'); open('dir/file', 'w').write('1')")
    box.snapshot()
    run(box, f"import shutil; shutil.rmtree('dir'); os.symlink({str(target)!r}, 'dir')")
    box.snapshot()
    run(box, "os.remove('dir'); os.mkdir('dir'); open('dir/other', 'w').write('2')")
    box.snapshot()
    assert list(target.iterdir()) == []
    replica = sessions_directory() / "links/workspace"
    assert sorted(path.name for path in (replica / "dir").iterdir()) == ["other"]


def test_what_a_cell_has_locked(boxes: Boxes, own_sessions: None) -> None:
    box = boxes(workspace="memory", session="locked")
    run(box, "import os; os.mkdir('dir'); open('dir/file', 'w').write('1'); os.chmod('dir', 0o500)")
    box.snapshot()
    run(box, "os.chmod('dir', 0o700); open('dir/file', 'w').write('2'); os.chmod('dir/file', 0)")
    if run(box, "print(os.getuid())").stdout != "0\n":  # root reads everything
        with pytest.raises(WorkspaceError, match="cannot be read"):
            box.snapshot()
    run(box, "os.chmod('dir/file', 0o600)")
    box.snapshot()
    assert (sessions_directory() / "locked/workspace/dir/file").read_text() == "2"


def test_errors_that_differ_each_time_are_one_warning(
    boxes: Boxes, own_sessions: None, caplog: pytest.LogCaptureFixture
) -> None:
    code = "asked.append(op)\nif op == 'list': out(rec(b'N', [row(str(len(asked)))]), number)\n"
    code += "if op == 'get': out(rec(b'F', [13, '']), number)\nend(number)"
    answering(boxes.local, code, "asked, figures = [], []\n")
    box = boxes(workspace="memory", session="noisy")
    assert eventually(lambda: int(box.execute("").locals["asked"]) > 6)
    assert caplog.text.count("this host has not what has changed") == 1


def test_a_container_that_did_not_get_all_files_costs_none(
    boxes: Boxes, own_sessions: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes the place of one that was lost, and the files of that cannot be sent to it."""
    box = boxes(workspace="memory", session="kept", restarts=1)
    run(box, "open('file', 'w').write('1')")
    box.snapshot()
    file = sessions_directory() / "kept/workspace/file"
    assert file.read_text() == "1"
    answering(boxes.local, "end(number, int(op == 'put'))", greeting=GREETING)
    boxes.local.processes[-1].kill()
    with pytest.raises(SandboxLostError):
        box.execute("x = 1")
    box.files.mkdir("directory")  # has the files brought here
    assert eventually(lambda: "stay as they are" in caplog.text or not file.exists())
    box.close()
    assert file.read_text() == "1"
