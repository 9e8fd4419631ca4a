"""The variables of an interpreter: the module ``__main__`` in which every cell runs."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Collection, Iterator
from typing import Any

from . import lm, wire
from .interrupts import Interrupts, monotonic
from .patches import PREFIX, Patches
from .shortforms import error_text, short_form, type_name
from .trivial import bound_names

#: The most characters of all short forms together.
_FORMS_BUDGET = 32_768
#: Seconds after which no more short forms are made.
_FORMS_SECONDS = 2.0
#: The most characters of the name of a variable that has a short form.
_FORMS_NAME = 120

#: The most characters of a final answer. They fit into one frame, however JSON escapes them.
_ANSWER = 5_000_000

#: The query functions.
FUNCTIONS = {
    "llm_query": lm.llm_query,
    "llm_query_batched": lm.llm_query_batched,
    "rlm_query": lm.rlm_query,
    "rlm_query_batched": lm.rlm_query_batched,
}

#: Names that every module has.
_OF_MODULES = frozenset(
    ("__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__")
)


class Namespace:
    """The variables, and the scaffold around them.

    The scaffold is what the system prompt of an RLM promises: the query functions, ``SHOW_VARS``,
    ``answer``, ``context`` and ``history``, and the user's tools. Cells overwrite these names by
    accident, so they are restored after each cell.
    """

    def __init__(self) -> None:
        # A module with this name, because dill saves functions and classes of __main__ by value,
        # and pickle finds their globals in it again.
        self.module = types.ModuleType("__main__")
        self.values: dict[str, Any] = self.module.__dict__
        self.values["__builtins__"] = builtins
        self.patches = Patches(self.values)
        self.answer: dict[str, Any] = _new_answer()
        #: False for a plain interpreter, with tools or without.
        self.has_scaffold = True
        #: Functions of the host. They are not variables.
        self.tools: dict[str, Any] = {}
        #: Variables to restore after each cell: tools that the user has given as code.
        self.kept_names: set[str] = set()
        self.kept: dict[str, Any] = {}
        #: The short forms of the last answer, by name.
        self._forms: dict[str, str] = {}
        #: The ids of values whose short forms took too long, by name.
        self._slow: dict[str, int] = {}
        #: Whether `history` is the host's compacted history, not another name of `history_0`.
        self.history_is_kept = False
        self.history: Any = None
        sys.modules["__main__"] = self.module
        _current.append(self)

    def begin(self, has_scaffold: bool) -> None:
        """Set up the scaffold. Call this before a restore, whose code may use it."""
        self.has_scaffold = has_scaffold
        self.restore_scaffold()

    def bind_tools(self, tools: dict[str, Any]) -> None:
        """Let cells call these functions of the host, in place of those before."""
        for name in self.tools.keys() - tools.keys():
            self.values.pop(name, None)
        self.tools = tools
        self.values.update(tools)

    def keep(self, names: list[str]) -> None:
        """Restore these variables after each cell that has bound them to something else."""
        self.kept_names.update(names)
        self.kept = {name: self.values[name] for name in self.kept_names if name in self.values}

    def restore_scaffold(self) -> None:
        """Restore the scaffold, but keep what a cell may change, such as ``answer``."""
        values = self.values
        sys.modules["__main__"] = self.module
        values["__name__"] = "__main__"
        values["__builtins__"] = builtins
        values.update(self.kept)
        values.update(self.tools)
        if not self.has_scaffold:
            return
        values.update(FUNCTIONS)
        values["SHOW_VARS"] = SHOW_VARS
        answer: Any = values.get("answer")
        if not issubclass(type(answer), dict):  # isinstance() would ask the object, which may lie
            answer = _new_answer()
            values["answer"] = answer
        self.answer = answer
        if "context_0" in values:
            values["context"] = values["context_0"]
        if self.history_is_kept:
            values["history"] = self.history
        elif "history_0" in values:
            values["history"] = values["history_0"]

    def final_answer(self, interrupts: Interrupts) -> str | None:
        """Return the content of ``answer`` if it is marked ready, else ``None``."""
        if not self.has_scaffold:
            return None
        if type(self.answer) is dict and self.answer.get("ready") is False:
            return None  # as after most cells; none of their code has run
        try:
            with interrupts:
                if self.answer.get("ready"):
                    content = str(self.answer.get("content", ""))
                    if len(content) > _ANSWER:
                        return "Error: the answer has {} characters, {} are the most.".format(
                            len(content), _ANSWER
                        )
                    return content
        except BaseException as error:  # a __bool__ or __str__ of the cell's own
            return "Error: the answer could not be read: {}".format(type(error).__name__)
        return None

    def reset_answer(self) -> None:
        """Forget the answer to the last question."""
        self.values["answer"] = self.answer = _new_answer()

    def variables(self) -> Iterator[tuple[str, Any]]:
        """Yield the variables: all but the scaffold's and the module's names."""
        others = {*_OF_MODULES, *self.tools, *(_SCAFFOLD if self.has_scaffold else ())}
        for name, value in list(self.values.items()):
            # Cells may put any key into globals(). Only a str is a variable's name.
            if type(name) is str and name not in others:
                yield name, value

    def saved(self) -> list[tuple[str, Any]]:
        """Return all that is saved by name: the variables, and what cells have set in libraries."""
        return [*self.variables(), *self.patches.items()]

    def set_patches(self) -> list[list[str]]:
        """Set in libraries what was restored for that. Return ``lost`` for what fails."""
        lost = []
        for name in [name for name in self.values if type(name) is str and name.startswith(PREFIX)]:
            value = self.values.pop(name)
            try:
                self.patches.set(name, value)
            except Exception as error:
                lost.append([name, type_name(value), error_text(error)])
        return lost

    def names_bound_by(self, tree: Any) -> set[str] | None:
        """Return the names that a cell binds, if it is trivial, else ``None``.

        Args:
            tree: its syntax tree.
        """
        protected = {*_OF_MODULES, *self.tools, *self.kept, *FUNCTIONS, *_RESTORED}
        known = FUNCTIONS if self.has_scaffold else {}
        return bound_names(tree, self.values, known, protected)

    def shown_variables(self) -> Iterator[tuple[str, Any]]:
        """Yield the variables to show to a model: no tools, and no leading underscore."""
        for name, value in self.variables():
            if not name.startswith("_") and self.kept.get(name, _NOTHING) is not value:
                yield name, value

    def short_forms(
        self, interrupts: Interrupts, bound: Collection[str] | None = None
    ) -> dict[str, str]:
        """Return the short form of each variable to show, by name.

        Every answer contains this, so number, lengths and total are bounded.

        Args:
            interrupts: allowed while code of the cells runs, such as a ``__repr__``.
            bound: what has changed since the last answer; ``None`` if that is unknown. The short
                form of a frame of pandas takes longer than a trivial cell.
        """
        forms: dict[str, str] = {}
        left = _FORMS_BUDGET
        deadline = monotonic() + _FORMS_SECONDS
        slow, self._slow = self._slow, {}
        for name, value in self.shown_variables():
            if len(name) > _FORMS_NAME:
                continue
            if len(forms) >= wire.MAX_FORMS:
                break
            form = "<{}>".format(type_name(value))
            if slow.get(name) == id(value):
                self._slow[name] = id(value)
            elif bound is not None and name not in bound and name in self._forms:
                form = self._forms[name]
            elif left > 0 and monotonic() < deadline:
                received = interrupts.received
                form = short_form(value, interrupts)
                if interrupts.received > received:
                    # An answer is wanted. Do not try again: every cell would take that time.
                    self._slow[name] = id(value)
                    left = 0
            left -= len(form)
            forms[name] = form
        self._forms = forms
        return forms


# SHOW_VARS is a function that pickles name, so it must find its namespace here.
_current: list[Namespace] = []


def SHOW_VARS() -> str:
    """List the variables that cells have made with their types, in the words of rlms."""
    available = {
        name: type_name(value) for name, value in _current[-1].shown_variables() if name != "answer"
    }
    if not available:
        return "No variables created yet. Use ```repl``` blocks to create variables."
    return "Available variables: {}".format(available)


_RESTORED = frozenset(("SHOW_VARS", "answer", "context", "history"))
_SCAFFOLD = frozenset((*FUNCTIONS, "SHOW_VARS"))
_NOTHING = object()


def _new_answer() -> dict[str, Any]:
    return {"content": "", "ready": False}
