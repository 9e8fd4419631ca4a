"""``rlm-containers repl`` in a real terminal, with a guest and without an engine."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers.cli.prompt import is_complete
from rlm_containers.container.bundle import Bundle
from tests.unit.terminal import Program, Terminal

UP = "\x1b[A"
CTRL_C, CTRL_D = "\x03", "\x04"


class Conversation:
    """Types cells and commands at a prompt."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.number = 1

    def prompt(self) -> None:
        """Wait until the next cell can be typed."""
        self.terminal.see(f"[{self.number}] >")

    def cell(self, keys: str, *lines: str) -> None:
        """Type a cell, and wait for lines that it prints."""
        self.prompt()
        self.terminal.type(f"{keys}\r")
        self.number += 1
        for line in lines:
            self.terminal.see_line(line)
        self.prompt()

    def command(self, keys: str, *texts: str) -> None:
        """Type a line that is no cell, and wait for what it prints."""
        self.prompt()
        self.terminal.type(f"{keys}\r")
        for text in texts:
            self.terminal.see(text)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repl")


@pytest.fixture(scope="module")
def conversation(made_bundle: Bundle, home: Path) -> Iterator[Conversation]:
    """Start a prompt that the tests of this module share."""
    program = Program(home, RLM_CONTAINERS_RUNTIME="local")
    with program.terminal("repl") as terminal:
        yield Conversation(terminal)
        terminal.type(CTRL_C + CTRL_D)
        assert terminal.end() == 0


def test_values_are_shown_and_variables_live_on(conversation: Conversation) -> None:
    conversation.cell("x = 6 * 7")
    conversation.cell("x", "42")
    conversation.cell("print('no end of line', end='')", "no end of line")


def test_a_cell_of_several_lines(conversation: Conversation) -> None:
    # The prompt indents the second and third line; an empty line ends the block.
    conversation.cell("for i in range(2):\rif i:\rprint('i is', i)\r", "i is 1")
    conversation.cell("('a'\r'b')", "'ab'")


def test_errors(conversation: Conversation) -> None:
    conversation.cell("1 / 0", "ZeroDivisionError: division by zero")
    conversation.cell("1 +* 2", "SyntaxError: invalid syntax")


def test_completion_of_variables(conversation: Conversation) -> None:
    conversation.cell("number_of_things = 5")
    conversation.terminal.type("number_\t")
    conversation.terminal.see(f"[{conversation.number}] > number_of_things")
    conversation.cell("", "5")


def test_completion_of_attributes(conversation: Conversation) -> None:
    conversation.cell("class Thing: first_part = 'aha'")
    conversation.cell("thing = Thing()")
    conversation.terminal.type("thing.fi\t")
    conversation.terminal.see("> thing.first_part")
    conversation.cell("", "'aha'")


def test_completion_of_the_names_that_every_cell_has(conversation: Conversation) -> None:
    conversation.prompt()
    conversation.terminal.type("SHOW\t")
    conversation.terminal.see("> SHOW_VARS")
    conversation.terminal.type(CTRL_C)  # discards the line
    conversation.cell("'next'", "'next'")


def test_ctrl_c_interrupts_the_cell_only(conversation: Conversation) -> None:
    conversation.cell("kept = 'kept ' * 2")
    conversation.prompt()
    conversation.terminal.type("import time; print('going', flush=True); time.sleep(60)\r")
    conversation.number += 1
    conversation.terminal.see_line("going")
    conversation.terminal.type(CTRL_C)
    conversation.terminal.see_line("KeyboardInterrupt")
    conversation.cell("kept", "'kept kept '")


def test_variables_survive_the_interpreter(conversation: Conversation) -> None:
    conversation.cell("survivor = 'still here'")
    conversation.cell("generator = (i for i in 'ab')")
    conversation.command(":unsaved", "cannot pickle 'generator'")
    conversation.cell("import os; os._exit(3)")
    conversation.terminal.see("ended itself with status 3")
    conversation.terminal.see("These variables are lost: generator")
    conversation.cell("survivor", "'still here'")


def test_commands(conversation: Conversation, home: Path) -> None:
    (home / "text.txt").write_text("some text")
    conversation.command(f":load text {home / 'text.txt'}")
    conversation.cell("text.upper()", "'SOME TEXT'")
    conversation.command(":vars", "'some text'")
    conversation.command(":help", ":load NAME FILE")
    conversation.command(":load nothing /nonesuch", "/nonesuch cannot be read: No such file")
    conversation.command(":load 1x /dev/null", "error: '1x' is not the name of a variable")
    conversation.command(":wrong", "There is no :wrong")


def test_history_is_kept_for_the_next_time(conversation: Conversation, home: Path) -> None:
    conversation.cell("'to be remembered'", "'to be remembered'")
    file = home / "state" / "rlm-containers" / "history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    program = Program(home, RLM_CONTAINERS_RUNTIME="local")
    with program.terminal("repl") as terminal:
        other = Conversation(terminal)
        other.prompt()
        terminal.type(UP)
        terminal.see("[1] > 'to be remembered'")
        other.cell("", "'to be remembered'")
        terminal.type("import sys; sys.exit(7)\r")
        assert terminal.end() == 7


def test_without_colours(program: Program) -> None:
    with program.terminal("repl", NO_COLOR="1") as terminal:
        other = Conversation(terminal)
        other.cell("def f(): return 'text'")
        other.cell("f()", "'text'")
        terminal.type(":quit\r")
        assert terminal.end() == 0
        assert not re.search(r"\x1b\[(\d+;)*[349][0-7]m", terminal.raw)


def test_a_context(program: Program, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with program.terminal("repl", "--context", str(tmp_path / "a.txt")) as terminal:
        other = Conversation(terminal)
        other.cell("context", "'abc'")
        terminal.type("import os; os.kill(os.getppid(), 9)\r")  # the supervisor
        terminal.see("error: The container")
        assert terminal.end() == 125


def test_without_a_terminal(program: Program) -> None:
    done = program("repl", input_="print(1)")
    assert (done.returncode, done.stdout) == (2, "")
    assert "`rlm-containers run -`" in done.stderr


@pytest.mark.parametrize(
    ("code", "complete"),
    [
        ("x = 1", True),
        ("", True),
        (":vars", True),
        ("if x:", False),
        ("if x:\n    y", False),
        ("if x:\n    y\n    ", True),
        ("if x:\n    ", False),
        ("if x:\n    y\n", True),
        ("f(", False),
        ("f(\n1)", True),
        ("f(\n  1)", True),
        ("if x: y", True),
        ("if x:\n    y\nz", True),
        ("@a\ndef f():\n    pass", False),
        ("# only", True),
        ("'''a", False),
        ("'''a\n b'''", True),
        ("x = ] 1", True),
        ("match x:\n    case 1: pass\n", True),
        ("@decorator", False),
        ("a\\", False),
        ("type X[T = int] = T", True),  # valid from Python 3.12 on
    ],
)
def test_is_complete(code: str, complete: bool) -> None:
    assert is_complete(code) == complete
