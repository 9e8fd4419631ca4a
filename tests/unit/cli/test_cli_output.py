"""What of a container's output reaches a terminal."""

from __future__ import annotations

import io

import pytest

from rlm_containers.cli.terminal import OutputWriter, harmless


class Screen(io.StringIO):
    """A stream that is a terminal."""

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
    ("\x1b[6nwhere", "[6nwhere"),  # an answer would be typed
    ("\x9b2J\x90q\x9c", "2Jq"),
    ("\x00\x07\x7f", ""),
    ("\x1b\x1b[31mx", "\x1b[31mx"),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_a_terminal_gets_colours_and_nothing_else_that_acts(text: str, shown: str) -> None:
    screen = Screen()
    OutputWriter(screen).write(text)
    assert screen.getvalue() == shown


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_it_makes_no_difference_where_output_is_cut(text: str, shown: str) -> None:
    screen = Screen()
    writer = OutputWriter(screen)
    for char in text:
        writer.write(char)
    assert screen.getvalue() == shown


def test_what_is_no_terminal_gets_it_all() -> None:
    file = io.StringIO()
    OutputWriter(file).write("\x1b]0;a title\x07\x00")
    assert file.getvalue() == "\x1b]0;a title\x07\x00"


def test_a_locale_without_the_characters() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    OutputWriter(stream).write("naïve ✓\n")
    assert raw.getvalue() == b"na\\xefve \\u2713\n"


def test_whether_a_line_is_finished() -> None:
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
def test_a_line_in_a_message(text: object, line: str) -> None:
    assert harmless(text) == line
    assert harmless("x" * 2000) == "x" * 1000
