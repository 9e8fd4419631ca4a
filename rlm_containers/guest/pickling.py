"""How variables become bytes: dill's pickler, made fit for many records in one file."""

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

from .classes import reduce_class, reduce_type_variable
from .loaded import Reference
from .statefile import Sink, Source

_TYPE_VARIABLES = tuple(
    getattr(typing, name)
    for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType")
    if isinstance(getattr(typing, name, None), type)
)


class _Dispatch(type(dill.Pickler.dispatch)):  # type: ignore[misc]
    """How to save which type: our own ways first, then dill's, which it adds to as it goes."""

    def __missing__(self, key: type) -> Any:
        return dill.Pickler.dispatch[key]


class StatePickler(dill.Pickler):  # type: ignore[misc]
    """dill's pickler, for several records in one file.

    Args:
        sink: where the bytes go.
        refer: gives the reference that is to stand for a value, or ``None``.
    """

    dispatch = _Dispatch()

    def __init__(self, sink: Sink, refer: Callable[[Any], Reference | None]) -> None:
        super().__init__(sink, protocol=4, byref=False, recurse=False)
        self._refer = refer

    def persistent_id(self, obj: Any) -> str | None:
        reference = self._refer(obj)
        # One string of its own for each: what a reference consists of must not be shared with
        # other records, which would be lost together with the first of them.
        return None if reference is None else json.dumps(reference)

    def put(self, idx: int) -> bytes:
        # Protocol 4 numbers the memo implicitly, by counting; a record that fails to load would
        # shift all that come after it. An explicit number stays right.
        return pickle.LONG_BINPUT + idx.to_bytes(4, "little")

    def forget(self, known: int) -> None:
        """Forget everything after the first ``known`` objects, with the record it was in."""
        while len(self.memo) > known:
            self.memo.popitem()
        self._postproc.clear()

    def save_mapping(self, obj: dict[Any, Any]) -> None:
        """A dict: by value, unless it is the namespace of a module, as functions refer to it."""
        # dill compares with ==, which calls whatever __eq__ the values have.
        name = obj.get("__name__")
        if type(name) is str and obj is getattr(sys.modules.get(name), "__dict__", None):
            self.write(pickle.GLOBAL + name.encode() + b"\n__dict__\n")
        else:
            pickle._Pickler.save_dict(self, obj)  # type: ignore[attr-defined]

    def reducer_override(self, obj: Any) -> Any:
        """Asked before anything else for how to save an object."""
        reduction = None
        if isinstance(obj, type):
            reduction = reduce_class(obj)
        elif type(obj) in _TYPE_VARIABLES:
            reduction = reduce_type_variable(obj)
        return NotImplemented if reduction is None else reduction

    def save_file(self, obj: Any) -> None:
        """A file: not at all. dill opens it again when it is loaded, and so empties it."""
        raise pickle.PicklingError("an open file cannot be saved")

    def save_module(self, obj: types.ModuleType) -> None:
        """A module: by name. dill saves the contents of those it takes for the user's own."""
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
        fetch: gives the value that a reference stands for.
        foreign: the version of Python that the file is of, where that is another than this one.
    """

    def __init__(
        self, source: Source, fetch: Callable[[Reference], Any], foreign: str | None = None
    ) -> None:
        # ignore: dill would else guess a class by its name for instances of __main__'s classes.
        super().__init__(source, ignore=True)
        self._source = source
        self._fetch = fetch
        self._foreign = foreign
        self._kept: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What is imported by name."""
        if self._foreign and name == "_create_code" and module.startswith("dill"):
            # dill would make it fit, and then it would run as whatever the bytes mean here.
            raise pickle.UnpicklingError(
                "its code is Python {}'s, and this is {}.{}.{}".format(
                    self._foreign, *sys.version_info[:3]
                )
            )
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self._kept[pid] if isinstance(pid, int) else self._fetch(_tuple(json.loads(pid)))

    def without(self, known: int) -> StateUnpickler:
        """A successor after a record failed, before which there were ``known`` objects.

        What the record had read ahead is stale, and objects that it left half built must not
        turn up in others: of its own only those stay that cannot be half built. A memo can be
        read but not be set, so the new one is made to fill its own: by a pickle that names each
        object and numbers it.
        """
        successor = StateUnpickler(self._source, self._fetch, self._foreign)
        memo = self.memo.copy()
        successor._kept = {n: obj for n, obj in memo.items() if n < known or _is_whole(obj)}
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
    """Whether an object came into being all at once: a plain value, or something imported."""
    if isinstance(obj, (type, types.FunctionType)):
        return obj.__module__ != "__main__"
    return type(obj) in _PLAIN


_PLAIN = (str, bytes, int, float, complex, bool, types.ModuleType, types.BuiltinFunctionType)


def _tuple(reference: list[Any]) -> Reference:
    return tuple(tuple(part) if isinstance(part, list) else part for part in reference)
