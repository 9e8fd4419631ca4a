"""The part of a container's output that reaches a terminal, and progress bars."""

from __future__ import annotations

import io

import pytest

from rlm_containers.cli.terminal import OutputWriter, Steps, harmless


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


CASES = [
    ("plain\ttext\r\n", "plain\ttext\r\n"),
    ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
    ("50%\x1b[K\r", "50%\x1b[K\r"),
    ("\x1b]0;a title\x07text", "]0;a titletext"),
    ("\x1b]52;c;aGVsbG8=\x1b\\text", "]52;c;aGVsbG8=\\text"),  # the clipboard
    ("\x1b[2J\x1b[Hgone", "[2J[Hgone"),
    ("\x1b[1Aup", "[1Aup"),
    ("\x1b[6nwhere", "[6nwhere"),  # the terminal would type an answer
    ("\x9b2J\x90q\x9c", "2Jq"),
    ("\x00\x07\x7f", ""),
    ("\x1b\x1b[31mx", "\x1b[31mx"),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_a_terminal_gets_no_control_sequences_but_colours(text: str, shown: str) -> None:
    screen = Screen()
    OutputWriter(screen).write(text)
    assert screen.getvalue() == shown


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_control_sequences_in_pieces(text: str, shown: str) -> None:
    screen = Screen()
    writer = OutputWriter(screen)
    for char in text:
        writer.write(char)
    assert screen.getvalue() == shown


def test_a_file_gets_everything() -> None:
    file = io.StringIO()
    OutputWriter(file).write("\x1b]0;a title\x07\x00")
    assert file.getvalue() == "\x1b]0;a title\x07\x00"


def test_an_encoding_that_lacks_characters() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    OutputWriter(stream).write("naïve ✓\n")
    assert raw.getvalue() == b"na\\xefve \\u2713\n"


def test_in_line() -> None:
    writer = OutputWriter(Screen())
    assert not writer.in_line
    writer.write("a")
    assert writer.in_line
    writer.write("\n")
    assert not writer.in_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a b", "a b"),
        ("a\nb\tc", "a b c"),
        ("\x1b[31m", "\ufffd[31m"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),  # reads backwards
        ("\ud800", "\ufffd"),
        (5, "5"),
    ],
)
def test_harmless(text: object, line: str) -> None:
    assert harmless(text) == line
    assert harmless("x" * 2000) == "x" * 1000


# Progress

DOCKER_PULL = """\
3.11-slim: Pulling from library/python
af302e5c37e9: Pulling fs layer
eeae4b9a4d45: Already exists
af302e5c37e9: Verifying Checksum
af302e5c37e9: Download complete
af302e5c37e9: Pull complete
Digest: sha256:4c8f8b1c
"""


@pytest.mark.parametrize(
    ("log", "progress"),
    [
        (DOCKER_PULL, [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2), (2, 2), (2, 2)]),
        ("Step 1/4 : FROM x\n ---> abc\nStep 2/4 : RUN y", [(0, 4), (0, 4), (1, 4)]),
        ("STEP 1/3: FROM x\nSTEP 3/3: RUN y", [(0, 3), (2, 3)]),
        ("#5 [2/4] RUN pip\n#6 [base 1/2] FROM z\n#5 DONE 0.3s", [(1, 4), (1, 4), (1, 4)]),
        ("Copying blob sha256:abc\nWriting manifest", [(0, 0), (0, 0)]),
        ("Step 9/0 : x", [(0, 0)]),
    ],
)
def test_steps(log: str, progress: list[tuple[int, int]]) -> None:
    steps, seen = Steps(), []
    for line in log.splitlines():
        steps.read(line)
        seen.append((steps.done, steps.total))
    assert seen == progress
