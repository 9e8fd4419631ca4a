"""The part of a container's output that reaches a terminal, and progress bars."""

from __future__ import annotations

import io

import pytest

from rlm_containers.cli.terminal import OutputWriter, Steps


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
    ("rm\b\bls", "rmls"),
    ("\x1b[8mhidden", "hidden"),
    ("\x1b[1;08;31mhidden", "\x1b[1;31mhidden"),
    ("\x1b[8:1mhidden", "hidden"),
    ("\x1b[38;5;8mgrey\x1b[48;2;8;8;8m", "\x1b[38;5;8mgrey\x1b[48;2;8;8;8m"),
    ("\x1b[38:5:8mgrey", "\x1b[38:5:8mgrey"),
    ("\x1b[38;8mhidden", "hidden"),
    ("\x1b[38;7;8mhidden", "\x1b[7mhidden"),
    ("\u202etxt.exe\u2066\u200f", "txt.exe"),
    ("a\u200b\ufeff\u2028\x85b", "ab"),
    ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),
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


def test_colours_end_with_the_output() -> None:
    screen = Screen()
    writer = OutputWriter(screen)
    for text in ("\x1b[31mred", "\x1b[0m", "\x1b[1m", "bold\n\x1b["):
        writer.write(text)
    writer.reset()
    writer.reset()
    writer.write("after\n")
    assert screen.getvalue() == "\x1b[31mred\x1b[0m\x1b[1mbold\n\x1b[0mafter\n"


def test_without_colours_nothing_is_added() -> None:
    for stream in (Screen(), io.StringIO()):
        writer = OutputWriter(stream)
        writer.write("\x1b[31mred\x1b[m")
        writer.reset()
        assert stream.getvalue() == "\x1b[31mred\x1b[m"


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
