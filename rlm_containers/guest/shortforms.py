"""Short, bounded texts for any value or exception."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

from .interrupts import Interrupts

_LIMIT = 120
_TYPE_LIMIT = 80
_STRING_LIMIT = 60
_ERROR_LIMIT = 300
_ITEMS = 5


class _ShortRepr(reprlib.Repr):
    """The standard library's bounded repr, with bounds for huge strings and numbers too."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = _ITEMS
        self.maxfrozenset = self.maxdeque = self.maxarray = _ITEMS
        self.maxstring = _STRING_LIMIT
        self.maxother = _LIMIT

    def repr_str(self, x: str, level: int) -> str:
        if len(x) <= _STRING_LIMIT:
            return repr(x)
        return "{}... ({} characters)".format(repr(x[:_STRING_LIMIT]), len(x))

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 256:  # repr() of a huge int is slow, or refused
            return "<int of {} bits>".format(x.bit_length())
        return repr(x)

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, (bytes, bytearray)) and len(x) > _STRING_LIMIT:
            return "{}... ({} bytes)".format(repr(bytes(x[:_STRING_LIMIT])), len(x))
        return super().repr_instance(x, level)

    # The base class would sort all elements of a dict or set to show a few.

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}" if x else "{}"
        parts = (
            "{}: {}".format(self.repr1(key, level - 1), self.repr1(value, level - 1))
            for key, value in islice(x.items(), _ITEMS)
        )
        return "{" + _joined(parts, len(x)) + "}"

    def repr_set(self, x: set[Any], level: int) -> str:
        return "{" + self._items(x, level) + "}" if x else "set()"

    def repr_frozenset(self, x: frozenset[Any], level: int) -> str:
        return "frozenset({" + self._items(x, level) + "})" if x else "frozenset()"

    def _items(self, x: Any, level: int) -> str:
        if level <= 0:
            return "..."
        return _joined((self.repr1(item, level - 1) for item in islice(x, _ITEMS)), len(x))


def _joined(parts: Iterable[str], count: int) -> str:
    return ", ".join((*parts, "...") if count > _ITEMS else parts)


_short = _ShortRepr()


def short_form(value: object, interrupts: Interrupts) -> str:
    """Return a repr of at most 120 characters. Never raises."""
    try:
        plain = _plain(value)
        if plain is not None:
            form = _short.repr(plain)
        else:
            with interrupts:
                form = _short.repr(value)
    except BaseException as error:  # code of a cell may raise SystemExit too
        return "<{}, whose repr fails: {}>".format(type_name(value), type_name(error))
    if len(form) > _LIMIT:
        form = form[: _LIMIT - 3] + "..."
    return form


_ATOMS = frozenset((str, int, float, bool, type(None)))


def _plain(value: object) -> object:
    """Return what has the same short form and runs no code of a cell; ``None`` if there is none."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        pairs = list(islice(value.items(), _ITEMS + 1))  # type: ignore[attr-defined]
        return dict(pairs) if _ATOMS.issuperset(map(type, chain.from_iterable(pairs))) else None
    if kind is list or kind is tuple:
        items = list(islice(value, _ITEMS + 1))  # type: ignore[call-overload]
        return kind(items) if _ATOMS.issuperset(map(type, items)) else None
    return None


def type_name(value: object) -> str:
    """Return the name of a value's type, cut to a length. Run no code of a metaclass."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name if len(name) <= _TYPE_LIMIT else name[: _TYPE_LIMIT - 3] + "..."


def error_text(error: BaseException) -> str:
    """Return an exception's type and message, cut to a length. Its ``__str__`` may fail."""
    try:
        text = "{}: {}".format(type_name(error), error)
    except BaseException:
        text = type_name(error)
    return text if len(text) <= _ERROR_LIMIT else text[: _ERROR_LIMIT - 3] + "..."
