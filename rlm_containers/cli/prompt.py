"""The prompt of ``repl``: history, completion, and whether a cell is complete."""

from __future__ import annotations

import ast
import builtins
import codeop
import keyword
import os
import re
import warnings
from collections.abc import Iterable

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, ThreadedCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import ColorDepth
from pygments.lexers.python import PythonLexer

from rlm_containers import ContainersError, Sandbox
from rlm_containers.cli.terminal import say
from rlm_containers.state import make_private

_COMMANDS = (":help", ":load", ":quit", ":unsaved", ":vars")

# The names that every cell has.
_SCAFFOLD = (
    "SHOW_VARS",
    "answer",
    "llm_query",
    "llm_query_batched",
    "rlm_query",
    "rlm_query_batched",
)

_NAME = re.compile(r"((?:[^\W\d]\w*\.)*)([^\W\d]\w*|)\Z")

# Statements that contain others.
_BLOCKS = (
    ast.AsyncFor,
    ast.AsyncFunctionDef,
    ast.AsyncWith,
    ast.ClassDef,
    ast.For,
    ast.FunctionDef,
    ast.If,
    ast.Match,
    ast.Try,
    ast.TryStar,
    ast.While,
    ast.With,
)

#: The most attributes that are offered of one object.
_MAX_ATTRIBUTES = 2000


class Prompt:
    """Reads cells from the terminal.

    Args:
        box: the sandbox that runs them.

    Attributes:
        variables: the names of the sandbox's variables, and their values in short.
    """

    def __init__(self, box: Sandbox) -> None:
        self.variables: dict[str, str] = {}
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            lexer=PygmentsLexer(PythonLexer),
            completer=ThreadedCompleter(_VariableCompleter(box, self)),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=_bindings(),
            color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
        )

    def read(self, number: int) -> str | None:
        """Return the next cell, or ``None`` if the user quits."""
        while True:
            try:
                return self._session.prompt(f"[{number}] > ")
            except KeyboardInterrupt:
                continue  # with an empty line
            except EOFError:
                return None


def is_complete(code: str) -> bool:
    """Tell whether Enter runs the cell: it is complete, or no further line can make it valid.

    An empty line ends a block, as in Python's own prompt. The sandbox's Python may be newer than
    this one, so it reports syntax errors, not this function.
    """
    if code.lstrip().startswith(":"):
        return True
    *before, last = code.split("\n")
    if before and not last.strip():
        code = code.rstrip() + "\n"  # drop the indent that the prompt added
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if codeop.compile_command(code, symbol="exec") is None:
                return False
            statements = ast.parse(code).body
    except (SyntaxError, ValueError, OverflowError):
        return True
    in_block = bool(statements) and isinstance(statements[-1], _BLOCKS)
    return not (before and last.strip() and in_block)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        at_end = not buffer.document.text_after_cursor.strip()
        if at_end and is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            line = buffer.document.current_line_before_cursor
            indent = line[: len(line) - len(line.lstrip())]
            deeper = "    " if line.rstrip().endswith(":") else ""
            buffer.insert_text("\n" + indent + deeper)

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("tab")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
        elif buffer.document.current_line_before_cursor.strip():
            buffer.start_completion(insert_common_part=True)
        else:
            buffer.insert_text("    ")

    return bindings


def _continuation(width: int, line_number: int, wraps: int) -> AnyFormattedText:
    return "... ".rjust(width)


def _history() -> FileHistory | None:
    """Return the history of earlier sessions, a file that only this user can read."""
    path = platformdirs.user_state_path("rlm-containers") / "history"
    try:
        make_private(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    except OSError as error:
        say(f"There will be no history: {path} cannot be written ({error.strerror}).")
        return None
    return FileHistory(str(path))


class _VariableCompleter(Completer):
    """Completes variables of the sandbox, their attributes, and Python's own names."""

    def __init__(self, box: Sandbox, prompt: Prompt) -> None:
        self._box = box
        self._prompt = prompt

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        before = document.text_before_cursor
        if before.startswith(":"):
            yield from self._command_completions(before)
            return
        match = _NAME.search(document.current_line_before_cursor)
        if match is None:
            return
        owner, begun = match.groups()
        names = self._attributes(owner[:-1]) if owner else self._names()
        # Names with a leading underscore are offered only when the user types one.
        for name in names:
            if name.startswith(begun) and (begun or not name.startswith("_")):
                yield Completion(name, -len(begun))

    def _names(self) -> list[str]:
        variables = filter(str.isidentifier, self._prompt.variables)
        known = (*_SCAFFOLD, *keyword.kwlist, *dir(builtins))
        return list(dict.fromkeys([*sorted(variables), *sorted(known)]))

    def _attributes(self, owner: str) -> list[str]:
        """Ask the sandbox for the attributes of an object."""
        if any(map(keyword.iskeyword, owner.split("."))):
            return []
        dir_ = f"__import__('builtins').dir({owner})[:{_MAX_ATTRIBUTES}]"
        try:
            result = self._box.execute(f"__import__('builtins').print(*{dir_})", name="completion")
        except ContainersError:
            return []  # the next cell will report the error
        if result.status != "ok":
            return []
        return [name for name in result.stdout.split() if name.isidentifier()]

    def _command_completions(self, before: str) -> Iterable[Completion]:
        from prompt_toolkit.completion import PathCompleter

        words = before.split(" ")
        if len(words) == 1:
            yield from (Completion(c, -len(before)) for c in _COMMANDS if c.startswith(before))
        elif words[0] == ":load" and len(words) > 2:
            path = " ".join(words[2:])
            yield from PathCompleter(expanduser=True).get_completions(
                Document(path, len(path)), CompleteEvent()
            )
