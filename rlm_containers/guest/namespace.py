"""The variables of a session: the module ``__main__`` in which every cell runs."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Iterator
from typing import Any

from . import lm
from .interrupts import Interrupts
from .shortforms import short_form, type_name

__all__ = ["Namespace"]

#: Characters of all short forms together.
_FORMS_BUDGET = 32_768
#: Variables that are listed at all, and characters of a name.
_FORMS_COUNT = 500
_FORMS_NAME = 120

_FUNCTIONS = {
    "llm_query": lm.llm_query,
    "llm_query_batched": lm.llm_query_batched,
    "rlm_query": lm.rlm_query,
    "rlm_query_batched": lm.rlm_query_batched,
}


#: What is in the namespace and is no variable: the scaffold, and what every module has.
_NOT_VARIABLES = frozenset(_FUNCTIONS) | {
    "SHOW_VARS",
    "__builtins__",
    "__doc__",
    "__loader__",
    "__name__",
    "__package__",
    "__spec__",
}


class Namespace:
    """One session's variables and the scaffold around them.

    The scaffold is what the system prompt of an RLM promises: the query functions, ``SHOW_VARS``,
    ``answer``, ``context`` and ``history``. Cells overwrite these names by accident; they come
    back after the cell.
    """

    def __init__(self) -> None:
        # A real module under the real name: dill saves functions and classes of __main__ by
        # value, and pickle finds their globals there again.
        self.module = types.ModuleType("__main__")
        self.values: dict[str, Any] = self.module.__dict__
        self.values["__builtins__"] = builtins
        self.answer: dict[str, Any] = _new_answer()
        #: Whether `history` is the host's compacted history and not an alias of `history_0`.
        self.history_is_kept = False
        self.history: Any = None
        sys.modules["__main__"] = self.module
        _current.append(self)
        self.restore_scaffold()

    def restore_scaffold(self) -> None:
        """Put back what belongs to the scaffold, keeping what a cell may rightly change."""
        values = self.values
        sys.modules["__main__"] = self.module
        values["__name__"] = "__main__"
        values["__builtins__"] = builtins
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
        try:
            with interrupts:
                if self.answer.get("ready"):
                    return str(self.answer.get("content", ""))
        except BaseException as error:  # a __bool__ or __str__ of the cell's own
            return "Error: the answer could not be read: {}".format(type(error).__name__)
        return None

    def reset_answer(self) -> None:
        """Forget an answer that was given, for the next question."""
        self.values["answer"] = self.answer = _new_answer()

    def variables(self) -> Iterator[tuple[str, Any]]:
        """The session's own variables: all but the scaffold's functions and the module's names."""
        for name, value in list(self.values.items()):
            # globals() takes any key; what is no name is no variable.
            if type(name) is str and name not in _NOT_VARIABLES:
                yield name, value

    def short_forms(self, interrupts: Interrupts) -> dict[str, str]:
        """Name to short repr for every variable that does not start with an underscore.

        Bounded in all directions, whatever the variables are: this travels with every answer.
        """
        forms: dict[str, str] = {}
        left = _FORMS_BUDGET
        received = interrupts.received
        for name, value in self.variables():
            if name.startswith("_") or len(name) > _FORMS_NAME:
                continue
            if len(forms) >= _FORMS_COUNT:
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
        name: type_name(value)
        for name, value in _current[-1].variables()
        if not name.startswith("_") and name != "answer"
    }
    if not available:
        return "No variables created yet. Use ```repl``` blocks to create variables."
    return "Available variables: {}".format(available)


def _new_answer() -> dict[str, Any]:
    return {"content": "", "ready": False}
