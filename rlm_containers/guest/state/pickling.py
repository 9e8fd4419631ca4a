"""Variables to bytes and back: dill's pickler, for many records in one file."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import dill

from ..classes import reduce_class, reduce_type_variable
from .files import Sink, Source
from .values import Reference

_TYPE_VARIABLES = tuple(
    getattr(typing, name)
    for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType")
    if isinstance(getattr(typing, name, None), type)
)


class _Dispatch(type(dill.Pickler.dispatch)):  # type: ignore[misc]
    """How to save a type: this module's way, else dill's. dill adds types at any time."""

    def __missing__(self, key: type) -> Any:
        return dill.Pickler.dispatch[key]


class StatePickler(dill.Pickler):  # type: ignore[misc]
    """dill's pickler, for many records in one file.

    Args:
        sink: where the bytes go.
        refer: returns the reference to save in place of a value, or ``None`` to save the value.
    """

    dispatch = _Dispatch()

    def __init__(self, sink: Sink, refer: Callable[[Any], Reference | None]) -> None:
        super().__init__(sink, protocol=4, byref=False, recurse=False)
        self._refer = refer

    def persistent_id(self, obj: Any) -> str | None:
        reference = self._refer(obj)
        # As one string. The parts of a tuple would be shared with other records, which would be
        # lost together with the first of them.
        return None if reference is None else json.dumps(reference)

    def put(self, idx: int) -> bytes:
        # Protocol 4 numbers the objects in the memo by counting them. A record that fails to load
        # would shift all numbers after it, so write each number.
        return pickle.LONG_BINPUT + idx.to_bytes(4, "little")

    def forget(self, memo_size: int) -> None:
        """Forget the objects of a record that failed: all but the first ``memo_size``."""
        while len(self.memo) > memo_size:
            self.memo.popitem()
        self._postproc.clear()

    def save_mapping(self, obj: dict[Any, Any]) -> None:
        """Save a dict by value, or by name if it is a module's namespace, as functions have it.

        dill compares dicts with ``==``, which runs the ``__eq__`` of the cells' values.
        """
        name = obj.get("__name__")
        if type(name) is str and obj is getattr(sys.modules.get(name), "__dict__", None):
            self.write(pickle.GLOBAL + name.encode() + b"\n__dict__\n")
        else:
            pickle._Pickler.save_dict(self, obj)  # type: ignore[attr-defined]

    def reducer_override(self, obj: Any) -> Any:
        """Say how to save an object. pickle asks this first."""
        reduction = None
        if isinstance(obj, type):
            reduction = reduce_class(obj)
        elif type(obj) in _TYPE_VARIABLES:
            reduction = reduce_type_variable(obj)
        return NotImplemented if reduction is None else reduction

    def save_file(self, obj: Any) -> None:
        """Refuse to save a file. dill would open it again when it restores it, and so empty it."""
        raise pickle.PicklingError("an open file cannot be saved")

    def save_module(self, obj: types.ModuleType) -> None:
        """Save a module by name. dill would save the contents of a module that a cell wrote."""
        if sys.modules.get(obj.__name__) is obj:
            self.save_reduce(importlib.import_module, (obj.__name__,), obj=obj)
        else:
            dill.Pickler.dispatch[types.ModuleType](self, obj)

    dispatch[dict] = save_mapping
    dispatch[types.ModuleType] = save_module
    for _kind in (
        io.TextIOWrapper,
        io.BufferedReader,
        io.BufferedWriter,
        io.BufferedRandom,
        io.FileIO,
    ):
        dispatch[_kind] = save_file


class StateUnpickler(dill.Unpickler):  # type: ignore[misc]
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
            # dill would accept the byte code, which means something else in this version.
            raise pickle.UnpicklingError(
                "its code is Python {}'s, and this is {}.{}.{}".format(
                    self._foreign, *sys.version_info[:3]
                )
            )
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._kept[pid] if isinstance(pid, int) else self._fetch(_tuple(json.loads(pid)))

    def after_failure(self, memo_size: int) -> StateUnpickler:
        """Return a new unpickler, for the records after one that failed.

        Objects that the failed record left half built must not turn up in other records. So keep
        only the objects from before it, and those of its own that cannot be half built.

        A dict that is assigned to the memo of C's unpickler is lost. So let the new one read a
        pickle that refers to each object to keep and puts it into the memo under its number.

        Args:
            memo_size: the number of objects in the memo before the failed record.
        """
        successor = StateUnpickler(self._source, self._fetch, self._foreign)
        memo = self.memo.copy()
        successor._kept = {n: obj for n, obj in memo.items() if n < memo_size or _is_whole(obj)}
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


def _is_whole(obj: Any) -> bool:
    """Return whether an object cannot be half built: a plain value, or something imported."""
    if isinstance(obj, (type, types.FunctionType)):
        return obj.__module__ != "__main__"
    return type(obj) in _PLAIN


_PLAIN = (str, bytes, int, float, complex, bool, types.ModuleType, types.BuiltinFunctionType)


def _tuple(reference: list[Any]) -> Reference:
    return tuple(tuple(part) if isinstance(part, list) else part for part in reference)
