"""A guest whose stream is none, that never gets ready, or that goes away: the host never hangs."""

from __future__ import annotations

import pytest

from rlm_containers.errors import SandboxLostError, SandboxStartError
from tests.unit.hostile import CELL, GREETING, LINGER, READY, execute, result, script
from tests.unit.sessions import Boxes


@pytest.mark.parametrize(
    "said",
    [
        "raw(b'hello world, this is no frame')",
        "raw(b'\\xff' * 100)",
        "raw(b'\\0\\0\\0\\0Z')",
        "raw((2**31).to_bytes(4, 'big') + b'm')",
        "put(b'm', b'not json')",
        "put(b'm', b'[]')",
        "put(b'm', b'5')",
        "put(b'm', b'null')",
        "put(b'm', b'\\xff\\xfe')",
        "put(b'm', b'')",
        "put(b'e', b'[1]')",
        "put(b'm', b'[' * 200_000)",
        "put(b'm', b'{\"a\": ' + b'1' * 10_000 + b'}')",
    ],
)
def test_a_stream_that_is_none_ends_the_sandbox(boxes: Boxes, said: str) -> None:
    with pytest.raises(SandboxLostError, match=r"no frame|no JSON object") as caught:
        execute(boxes, f"{said}\n")
    assert caught.value.container == boxes.made[-1].name
    with pytest.raises(SandboxLostError):
        boxes.made[-1].execute("x = 1")


@pytest.mark.parametrize("status", [0, 1, 137])
def test_a_guest_that_goes_away(boxes: Boxes, status: int) -> None:
    with pytest.raises(SandboxLostError, match=f"status {status}") as caught:
        execute(boxes, f"sys.stderr.write('the last words')\nsys.exit({status})")
    assert "the last words" in str(caught.value)
    assert "Make a new Sandbox" in caught.value.remedy


@pytest.mark.parametrize(
    ("known", "said", "asked"),
    [
        (True, "it was killed for its memory: it may use no more than 64 MiB", False),
        (False, "its program ended with status 137.", True),
        (None, "its program ended with status 137, perhaps killed for its memory.", True),
    ],
)
def test_a_container_that_the_kernel_kills(
    boxes: Boxes, known: bool | None, said: str, asked: bool
) -> None:
    boxes.local.out_of_memory = known
    script(boxes.local, CELL + "sys.exit(137)")
    box = boxes(memory="64m")
    with pytest.raises(SandboxLostError) as caught:
        box.execute("x = 1")
    assert said in caught.value.what
    assert ("removed by someone" in caught.value.remedy) is asked


def test_a_guest_that_is_killed(boxes: Boxes) -> None:
    with pytest.raises(SandboxLostError, match="The container"):
        execute(boxes, "os.kill(os.getpid(), 9)")


def test_what_came_before_the_end_is_not_lost_silently(boxes: Boxes) -> None:
    heard: list[str] = []
    script(boxes.local, CELL + "put(b'o', b'working')\nsys.exit(3)")
    with pytest.raises(SandboxLostError):
        boxes().execute("x", on_output=lambda name, text: heard.append(text))
    assert heard == ["working"]


def test_half_a_frame_at_the_end(boxes: Boxes) -> None:
    with pytest.raises(SandboxLostError):
        execute(boxes, "raw(b'\\0\\0\\1\\0m{')\nsys.exit(0)")


def test_much_on_stderr_is_cut(boxes: Boxes) -> None:
    code = "for _ in range(3000): os.write(2, b'x' * 1000)\nos.write(2, b'the end')\nsys.exit(1)"
    with pytest.raises(SandboxLostError, match="the end") as caught:
        execute(boxes, code)
    assert len(str(caught.value)) < 50_000


def test_output_from_nowhere_is_kept_within_bounds(boxes: Boxes) -> None:
    code = "for _ in range(500): put(b'o', b'x' * 10_000); put(b'r', b'\\xff' * 10_000)\n"
    found = execute(boxes, code + result())
    assert len(found.stdout) < 1100
    assert len(found.stderr) < 1100


def test_a_guest_that_does_not_read(boxes: Boxes) -> None:
    # More than the pipe holds: the host must not wait for ever, nor the end of the sandbox.
    script(boxes.local, CELL + "sys.exit(0)")
    with pytest.raises(SandboxLostError):
        boxes().execute("x = 1 #" + "x" * 10_000_000)


# Before it is ready


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("raw(b'Welcome to this image!\\n')" + LINGER, "no frame"),
        ("sys.exit(3)", "status 3"),
        ("put(b'm', b'nonsense')" + LINGER, "no JSON object"),
        (GREETING + "raw(b'garbage')" + LINGER, "no frame"),
        (GREETING + "sys.exit(5)", "status 5"),
    ],
)
def test_a_guest_that_never_gets_ready(boxes: Boxes, code: str, match: str) -> None:
    script(boxes.local, code)
    with pytest.raises(Exception, match=match):
        boxes()


def test_a_guest_that_says_nothing_is_not_waited_for(boxes: Boxes) -> None:
    script(boxes.local, LINGER)
    with pytest.raises(SandboxStartError, match=r"not up within 0\.3 s") as caught:
        boxes(start_timeout=0.3)
    assert "start_timeout" in caught.value.remedy
    assert set(boxes.local.removed) == {boxes.made[-1].name}


def test_a_long_python_version_is_cut(boxes: Boxes) -> None:
    code = READY.replace("'3.11.0'", "'9' * 10_000") + LINGER
    script(boxes.local, code)
    assert len(boxes().python_version or "") < 100


# The guest asks


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{}",
        b'{"path": "/llm_query"}',
        b'{"request": {}}',
        b'{"path": 5, "request": {}}',
        b'{"path": "/llm_query", "request": {"prompt": 5}}',
        b"\xff",
        b"[" * 100_000,
    ],
    ids=lambda payload: repr(payload)[:30],
)
def test_a_call_that_is_none_is_answered(boxes: Boxes, payload: bytes) -> None:
    code = (
        f"put(b'c', b'\\0\\0\\0\\x07' + {payload!r})\n"
        "head = sys.stdin.buffer.read(5)\n"
        "body = sys.stdin.buffer.read(int.from_bytes(head[:4], 'big'))\n"
        "assert head[4:] == b'c' and body[:4] == b'\\0\\0\\0\\x07', (head, body)\n"
        "assert 'error' in json.loads(body[4:]), body\n"
    )
    assert execute(boxes, code + result()).status == "ok"
