"""The variables of a session: the module ``__main__`` in which every cell runs."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Iterator
from typing import Any

from . import lm, wire
from .interrupts import Interrupts
from .shortforms import short_form, type_name

#: Characters of all short forms together.
_FORMS_BUDGET = 32_768
#: Characters of the name of a variable that is listed at all.
_FORMS_NAME = 120

#: Characters of a final answer: what fits into one frame, however they are escaped.
_ANSWER = 5_000_000

_FUNCTIONS = {
    "llm_query": lm.llm_query,
    "llm_query_batched": lm.llm_query_batched,
    "rlm_query": lm.rlm_query,
    "rlm_query_batched": lm.rlm_query_batched,
}


#: What every module has.
_OF_MODULES = frozenset(
    ("__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__")
)


class Namespace:
    """One session's variables and the scaffold around them.

    The scaffold is what the system prompt of an RLM promises: the query functions, ``SHOW_VARS``,
    ``answer``, ``context`` and ``history``, and the tools that the user has given. Cells overwrite
    these names by accident; they come back after the cell.
    """

    def __init__(self) -> None:
        # A real module under the real name: dill saves functions and classes of __main__ by
        # value, and pickle finds their globals there again.
        self.module = types.ModuleType("__main__")
        self.values: dict[str, Any] = self.module.__dict__
        self.values["__builtins__"] = builtins
        self.answer: dict[str, Any] = _new_answer()
        #: What has no scaffold is a plain interpreter, with tools or without.
        self.has_scaffold = True
        #: Functions of the host, which are no variables.
        self.tools: dict[str, Any] = {}
        #: Variables that are tools all the same: functions that the user has given as code.
        self.kept_names: set[str] = set()
        self.kept: dict[str, Any] = {}
        #: Whether `history` is the host's compacted history and not an alias of `history_0`.
        self.history_is_kept = False
        self.history: Any = None
        sys.modules["__main__"] = self.module
        _current.append(self)

    def begin(self, has_scaffold: bool) -> None:
        """Choose what the cells find, before anything is restored that looks for it."""
        self.has_scaffold = has_scaffold
        self.restore_scaffold()

    def bind_tools(self, tools: dict[str, Any]) -> None:
        """Let cells call these functions of the host, and those that were bound before no more."""
        for name in self.tools.keys() - tools.keys():
            self.values.pop(name, None)
        self.tools = tools
        self.values.update(tools)

    def keep(self, names: list[str]) -> None:
        """Have these variables come back after a cell has bound their names to something else."""
        self.kept_names.update(names)
        self.kept = {name: self.values[name] for name in self.kept_names if name in self.values}

    def restore_scaffold(self) -> None:
        """Put back what belongs to the scaffold, keeping what a cell may rightly change."""
        values = self.values
        sys.modules["__main__"] = self.module
        values["__name__"] = "__main__"
        values["__builtins__"] = builtins
        values.update(self.kept)
        values.update(self.tools)
        if not self.has_scaffold:
            return
        values.update(_FUNCTIONS)
        values["SHOW_VARS"] = SHOW_VARS
        answer: Any = values.get("answer")
        if not issubclass(type(answer), dict):  # isinstance() asks the object, which may lie
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
        """The content of ``answer`` once it is marked ready, else ``None``."""
        if not self.has_scaffold:
            return None
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
        """Forget an answer that was given, for the next question."""
        self.values["answer"] = self.answer = _new_answer()

    def variables(self) -> Iterator[tuple[str, Any]]:
        """The session's own variables: all but the scaffold's functions and the module's names."""
        others = {*_OF_MODULES, *self.tools, *(_SCAFFOLD if self.has_scaffold else ())}
        for name, value in list(self.values.items()):
            # globals() takes any key; what is no name is no variable.
            if type(name) is str and name not in others:
                yield name, value

    def shown_variables(self) -> Iterator[tuple[str, Any]]:
        """Those that a model is told of: neither tools nor with a leading underscore."""
        for name, value in self.variables():
            if not name.startswith("_") and self.kept.get(name, _NOTHING) is not value:
                yield name, value

    def short_forms(self, interrupts: Interrupts) -> dict[str, str]:
        """Name to short repr for every variable that does not start with an underscore.

        Bounded in all directions, whatever the variables are: this travels with every answer.
        """
        forms: dict[str, str] = {}
        left = _FORMS_BUDGET
        received = interrupts.received
        for name, value in self.shown_variables():
            if len(name) > _FORMS_NAME:
                continue
            if len(forms) >= wire.MAX_FORMS:
                break
            bare = "<{}>".format(type_name(value))
            if interrupts.received > received:
                left = 0  # the host wants an answer: no more of the cell's own code
            form = short_form(value, interrupts) if left > 0 else bare
            left -= len(form)
            forms[name] = form
        return forms


# SHOW_VARS is a plain function that code can pickle by name, so it must find its namespace.
_current: list[Namespace] = []


def SHOW_VARS() -> str:
    """The variables that cells have made, with their types, as rlms words it."""
    available = {
        name: type_name(value) for name, value in _current[-1].shown_variables() if name != "answer"
    }
    if not available:
        return "No variables created yet. Use ```repl``` blocks to create variables."
    return "Available variables: {}".format(available)


_SCAFFOLD = frozenset((*_FUNCTIONS, "SHOW_VARS"))
_NOTHING = object()


def _new_answer() -> dict[str, Any]:
    return {"content": "", "ready": False}
