"""Reads state files of version 2, which dill's pickler in Python wrote with protocol 4.

A record refers to what it does not contain by a persistent id, which is a reference as JSON, and it
contains the memo's numbers. dill saved the classes of cells with constructors that are kept here.
"""

from __future__ import annotations

import abc
import io
import json
import pickle
import types
import typing
from collections.abc import Callable
from io import BufferedReader
from typing import Any

import dill

from .blobs import Reference
from .files import Source
from .pickling import as_tuple, foreign_code, is_whole


class EarlierRecords:
    """Reads the records of a file of version 2.

    Args:
        file: the file.
        index: its index.
        fetch: returns the value that a reference stands for.
        foreign: the version of Python that wrote the file, if it is not this one.
    """

    def __init__(
        self,
        file: BufferedReader,
        index: dict[str, Any],
        fetch: Callable[[Reference], Any],
        foreign: str | None = None,
    ) -> None:
        self._file = file
        self._index = index
        self._unpickler = EarlierUnpickler(Source(file), fetch, foreign)
        self._failed: int | None = None

    def read(self, number: int) -> Any:
        """Return the value of a record. After an error, read the next one all the same."""
        _, offset, _, memo_size, _ = self._index["records"][number]
        if self._failed is not None:
            self._unpickler = self._unpickler.after_failure(self._failed)
        self._failed = memo_size
        self._file.seek(offset)
        _, value = self._unpickler.load()
        self._failed = None
        return value


class EarlierUnpickler(dill.Unpickler):  # type: ignore[misc]
    """dill's unpickler.

    Args:
        source: where the bytes come from.
        fetch: returns the value that a reference stands for.
        foreign: the version of Python that wrote the file, if it is not this one.
    """

    def __init__(
        self, source: Source, fetch: Callable[[Reference], Any], foreign: str | None = None
    ) -> None:
        # Without ignore, dill guesses the class of an instance from its name in __main__.
        super().__init__(source, ignore=True)
        self._source = source
        self._fetch = fetch
        self._foreign = foreign
        self._kept: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names."""
        if self._foreign and name == "_create_code" and module.startswith("dill"):
            raise foreign_code(self._foreign)
        if module == "rlm_guest.classes":
            return _CONSTRUCTORS[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._kept[pid] if isinstance(pid, int) else self._fetch(as_tuple(json.loads(pid)))

    def after_failure(self, memo_size: int) -> EarlierUnpickler:
        """Return a new unpickler, for the records after one that failed.

        Objects that the failed record left half built must not turn up in other records. So keep
        only the objects from before it, and those of its own that cannot be half built.

        A dict that is assigned to the memo of C's unpickler is lost. So let the new one read a
        pickle that refers to each object to keep and puts it into the memo under its number.

        Args:
            memo_size: the number of objects in the memo before the failed record.
        """
        successor = EarlierUnpickler(self._source, self._fetch, self._foreign)
        memo = self.memo.copy()
        successor._kept = {n: obj for n, obj in memo.items() if n < memo_size or is_whole(obj)}
        program = io.BytesIO()
        program.write(pickle.PROTO + b"\x04")
        for number in successor._kept:
            raw = number.to_bytes(4, "little")
            program.write(pickle.BININT + raw + pickle.BINPERSID)
            program.write(pickle.LONG_BINPUT + raw + pickle.POP)
        program.write(pickle.NONE + pickle.STOP)
        program.seek(0)
        file, self._source.file = self._source.file, program
        try:
            successor.load()
        finally:
            self._source.file = file
            successor._kept = {}
        return successor


# The constructors of classes


def _make_class(meta: Any, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
    return types.new_class(name, bases, {"metaclass": meta}, lambda space: space.update(body))


def _make_enum(meta: Any, name: str, bases: tuple[Any, ...], members: dict[str, Any]) -> type:
    space = meta.__prepare__(name, bases)
    space["__module__"] = "__main__"
    for key, value in members.items():
        space[key] = value
    made: type = meta.__new__(meta, name, bases, space)
    return made


def _fill_class(cls: type, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        try:
            setattr(cls, name, value)
        except (AttributeError, TypeError):
            pass  # read-only, so the class has made it by itself
    if isinstance(cls, abc.ABCMeta):
        # The class was empty when it found out which of its methods are abstract.
        names = {
            name for base in cls.__bases__ for name in getattr(base, "__abstractmethods__", ())
        }
        found = {name for name in names | set(vars(cls)) if _is_abstract(cls, name)}
        cls.__abstractmethods__ = frozenset(found)


def _is_abstract(cls: type, name: str) -> bool:
    return bool(getattr(getattr(cls, name, None), "__isabstractmethod__", False))


def _make_typed_dict(name: str, fields: dict[str, Any], total: bool) -> Any:
    typed_dict: Any = typing.TypedDict
    made = typed_dict(name, fields, total=total)
    made.__module__ = "__main__"
    return made


def _make_type_variable(
    name: str, constraints: tuple[Any, ...], bound: Any, covariant: bool, contravariant: bool
) -> Any:
    keywords = {"bound": bound, "covariant": covariant, "contravariant": contravariant}
    type_var: Any = typing.TypeVar
    return _in_main(type_var(name, *constraints, **keywords))


def _make_new_type(name: str, supertype: Any) -> Any:
    new_type: Any = typing.NewType
    return _in_main(new_type(name, supertype))


def _make_named(kind: Callable[[str], Any], name: str) -> Any:
    return _in_main(kind(name))


def _in_main(variable: Any) -> Any:
    variable.__module__ = "__main__"
    return variable


_CONSTRUCTORS: dict[str, Any] = {
    function.__name__: function
    for function in (
        _make_class,
        _make_enum,
        _fill_class,
        _make_typed_dict,
        _make_type_variable,
        _make_new_type,
        _make_named,
    )
}
