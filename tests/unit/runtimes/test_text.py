"""Text of others in errors and logs: it acts on nothing, forges no line, and is not long."""

from __future__ import annotations

import logging
import pickle
import re
import unicodedata
from pathlib import Path

import pytest

import runtimes
from runtimes.errors import ContainersError
from runtimes.text import brief, clean, get_logger

#: Kinds of hostile text, by what they do.
HOSTILE = {
    "colours": "\x1b[31;8mx",
    "clears": "\x1b[2J\x1b[H",
    "clipboard": "\x1b]52;c;aGVsbG8=\x07",
    "title": "\x1b]0;t\x1b\\",
    "C1": "\x9b2J\x9d52;c;x\x9c",
    "return": "\rroot# ",
    "backspace": "a\b\b\b",
    "bidi": "\u202e\u202a\u2066\u2069\u200f",
    "zero width": "a\u200bb\u2060\ufeff",
    "NUL": "\x00",
    "surrogate": "\ud800",
    "line separators": "a\u2028b\u2029c\x85d\x0be\x0cf",
    "lines": "a\nerror: forged\r\nb",
    "tags": "\U000e0041",
    "long": "x\x1b" * 5_000_000,
}

hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def assert_harmless(text: str, limit: int) -> None:
    """Check that text is one line without characters that act, or that nobody sees."""
    assert len(text) <= limit
    assert {unicodedata.category(char)[0] for char in text} <= set("LMNPSZ")
    assert not re.search("[\u2028\u2029]", text)
    text.encode()


@hostile
def test_one_line(text: str) -> None:
    assert_harmless(clean(text, 300), 300)
    assert clean(clean(text, 300), 300) == clean(text, 300)


@hostile
def test_several_lines(text: str) -> None:
    cleaned = clean(f"first\n{text}\n", 300, lines=True)
    first, *others = cleaned.split("\n")
    assert first == "first"
    for line in others:
        assert_harmless(line, 300)
        assert line.startswith("  | ")
    assert len(cleaned) <= 300
    assert clean(cleaned, 300, lines=True) == cleaned


@hostile
def test_errors(text: str) -> None:
    error = ContainersError(f"It said {text}", remedy=f"See {text}", container=text)
    for line in str(error).split("\n"):
        assert_harmless(line, 25_000)
    assert len(str(error)) < 25_000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@hostile
def test_log_records(text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "runtimes.test")
    logger = get_logger("runtimes.test")
    logger.warning("said %s", text)
    logger.debug("%r: %s", text, ValueError(text))
    logger.info(f"said {text}")
    assert len(caplog.messages) == 3
    for message in caplog.messages:
        assert_harmless(message, 5000)
    assert len(caplog.text.splitlines()) == 3


@hostile
def test_values(text: str) -> None:
    for value in (text, [text] * 100, {text: text}, text.encode("utf-8", "surrogatepass")):
        assert_harmless(brief(value), 200)


class Unfriendly:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x", "'x'"),
        (None, "None"),
        ([1, 2], "[1, 2]"),
        ({"a": 1}, "{'a': 1}"),
        (Unfriendly(), "<Unfriendly instance at"),
        ("https://u:pw@host/x", "'https://****@host/x'"),
    ],
)
def test_brief(value: object, shown: str) -> None:
    assert brief(value).startswith(shown)


def test_a_number_that_repr_refuses() -> None:
    assert brief(10**5000) == "<int>"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("a\tb\u3000c", "a b c"),
        ("naïve ✓ 日本", "naïve ✓ 日本"),
        (5, "5"),
        ("index https://user:s3cret@host/simple", "index https://****@host/simple"),
        ("git+https://t0ken@github.com/a/b", "git+https://****@github.com/a/b"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
    ],
)
def test_clean(text: object, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_long_text_keeps_both_ends() -> None:
    shown = clean("begin " + "x" * 10_000_000 + " end", 100)
    assert shown.startswith("begin ")
    assert shown.endswith(" end")
    assert len(shown) == 100


@pytest.mark.parametrize("at", range(0, 400, 7))
def test_a_password_is_hidden_wherever_the_text_is_cut(at: int) -> None:
    text = "x" * at + " https://user:s3cret-s3cret@host/ " + "y" * 20_000
    assert "s3cret" not in clean(text, 200)
    assert "s3cret" not in clean(
        "y" * 20_000 + " https://user:s3cret-s3cret@host/ " + "x" * at, 200
    )


def test_every_logger_is_clean() -> None:
    top = Path(runtimes.__file__).parent.parent
    for folder in ("runtimes", "rlm_containers"):
        for source in (top / folder).rglob("*.py"):
            if source.name in ("text.py", "terminal.py") or "guest" in source.parts:
                continue  # the second only reads the records
            code = source.read_text()
            assert "logging.getLogger" not in code, source
            assert "exc_info=" not in code, source
