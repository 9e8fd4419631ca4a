"""Variables to bytes and back: the pickler and the unpickler in C, for many records in one file.

What pickle itself can save does not reach Python code, or only to be asked for its type. The rest
is in :mod:`rlm_guest.state.reductions`.

The pickler's memo has all objects that were saved, by id. So whatever is to be saved by reference
is put into the memo first: a *prelude* loads it, and the records get it from the memo.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
import sys
import types
from array import array
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from . import arrays
from .blobs import Reference
from .files import Sink, Source
from .reductions import Reductions

PROTOCOL = 5


class StatePickler(pickle.Pickler):
    """Writes one pickle after the other, which share their objects.

    Args:
        sink: where the bytes go.
        patches: names that lead to something else in a later process, such as ``json.dumps``.

    Attributes:
        count: the number of objects in the memo.
        reductions: how objects are saved, and whether one was saved in a way that may not load.
    """

    def __init__(self, sink: Sink, patches: Container[str] = ()) -> None:
        super().__init__(sink, PROTOCOL)
        self._sink = sink
        self.count = 0
        self.reductions = Reductions(patches)
        self._handlers = self.reductions.handlers
        self._find_handler = self.reductions.find

    def reducer_override(self, obj: Any) -> Any:
        """Say how to save an object. pickle asks this of everything but plain data."""
        kind = type(obj)
        try:
            handler = self._handlers[kind]
        except KeyError:
            handler = self._find_handler(kind)
        return NotImplemented if handler is None else handler(obj)

    def write_prelude(self, references: Iterable[tuple[Any, Reference]]) -> None:
        """Save objects by reference: each object, and the reference to it."""
        targets, stands = [], []
        for target, reference in references:
            targets.append(target)
            stands.append(_Stand(reference))
        self._write(tuple(stands))
        memo = self.memo.copy()
        for target, stand in zip(targets, stands):  # noqa: B905 - not in 3.9
            number, _ = memo.pop(id(stand))
            memo[id(target)] = (number, target)
        self.memo = memo

    def write_record(self, name: str, value: Any) -> None:
        """Save a variable. If that fails, the memo is as it was before."""
        try:
            self._write((name, value))
        except BaseException:
            memo = self.memo.copy()
            if len(memo) != self.count:
                kept = {key: entry for key, entry in memo.items() if entry[0] < self.count}
                self.memo = kept
            raise

    def _write(self, record: tuple[Any, ...]) -> None:
        self.dump(record)
        # The numbers of objects in the memo are not in the pickle: they are counted. A tuple gets
        # its number after its elements. So save it once more, which writes only the last number.
        self._sink.aside = []
        try:
            self.dump(record)
            raw = b"".join(self._sink.aside)
        finally:
            self._sink.aside = None
        self.count = _number(raw) + 1

    def objects(self) -> list[Any]:
        """Return the objects in the memo by their numbers. Some numbers have none."""
        objects: list[Any] = [None] * self.count
        for number, obj in self.memo.copy().values():
            objects[number] = obj
        return objects


def _number(raw: bytes) -> int:
    """Return the number in a pickle that gets one object from the memo."""
    opcode, argument = raw[2:3], raw[3:]
    if opcode == pickle.FRAME:
        opcode, argument = raw[11:12], raw[12:]
    if opcode == pickle.BINGET:
        return argument[0]
    assert opcode == pickle.LONG_BINGET, raw
    return int.from_bytes(argument[:4], "little")


class _Stand:
    """Stands in the prelude for an object that is saved by reference."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def __reduce__(self) -> Any:
        return fetch, (json.dumps(self.reference),)


def fetch(reference: str) -> Any:
    """Return what a reference stands for. Named by the pickles; each unpickler has its own."""
    raise pickle.UnpicklingError("no reference can be loaded here")


class Missing:
    """Stands for an object that could not be loaded. Whoever uses it fails, or is lost by name.

    Args:
        reason: why it could not be loaded.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def _fail(self, *_: object) -> Any:
        raise pickle.UnpicklingError(self.reason)

    __hash__ = __eq__ = __iter__ = __len__ = __bool__ = __getattr__ = __str__ = __repr__ = _fail


def foreign_code(version: str) -> pickle.UnpicklingError:
    """Return the error for code of another version of Python.

    Its byte code would be accepted, and means something else in this version.
    """
    return pickle.UnpicklingError(
        "its code is Python {}'s, and this is {}.{}.{}".format(version, *sys.version_info[:3])
    )


class StateUnpickler(pickle.Unpickler):
    """Reads one pickle after the other.

    Args:
        source: where the bytes come from.
        fetch: returns the value that a reference stands for.
        foreign: the version of Python that wrote the file, if it is not this one.
    """

    def __init__(
        self, source: Source, fetch: Callable[[Reference], Any], foreign: str | None = None
    ) -> None:
        super().__init__(source)
        self._source = source
        self._fetch = fetch
        self._foreign = foreign
        self._given: Mapping[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names."""
        if self._foreign and name in ("make_code", "_create_code"):
            raise foreign_code(self._foreign)
        if name == "fetch" and module == __name__:
            # Not a method: the memo gets it, and some Pythons would never collect that cycle.
            return functools.partial(_fetched, self._fetch)
        found = super().find_class(module, name)
        is_array = name == "_frombuffer" and module.startswith("numpy.")
        return arrays.own_array(found) if is_array else found

    def persistent_load(self, pid: Any) -> Any:
        return self._given[pid]

    def put(self, numbers: range, objects: Mapping[int, Any], other: Any = None) -> None:
        """Put objects into the memo.

        A dict that is assigned to the memo of C's unpickler is lost. So read a pickle that refers
        to each object by its number and puts it into the memo.

        Args:
            numbers: the numbers in the memo to fill.
            objects: the objects for some of these numbers.
            other: what the other numbers get.
        """
        program = bytearray(pickle.PROTO + b"\x05")
        program += pickle.BININT + b"\xff\xff\xff\xff" + pickle.BINPERSID  # other, as number -1
        program += _puts(numbers) + pickle.POP
        for number in objects:
            raw = number.to_bytes(4, "little")
            program += pickle.BININT + raw + pickle.BINPERSID + pickle.LONG_BINPUT + raw
            program += pickle.POP
        program += pickle.NONE + pickle.STOP
        file, self._source.file = self._source.file, io.BytesIO(program)
        self._given = {**objects, -1: other}
        try:
            self.load()
        finally:
            self._source.file = file
            self._given = {}


def _fetched(fetch: Callable[[Reference], Any], raw: str) -> Any:
    try:
        return fetch(as_tuple(json.loads(raw)))
    except (OSError, ValueError) as error:
        return Missing("{}: {}".format(type(error).__name__, error))


class _AnythingType(type):
    """Makes :class:`Anything` do whatever a pickle wants of an object."""

    def __call__(cls, *arguments: object, **keywords: object) -> Any:
        return cls

    def __setitem__(cls, key: object, value: object) -> None:
        pass

    def _take(cls, *arguments: object) -> None:
        pass

    __setstate__ = append = extend = add = update = _take


class Anything(metaclass=_AnythingType):
    """Stands for each class and object that a skimmed pickle makes."""

    def __new__(cls, *arguments: object, **keywords: object) -> Any:
        return cls


class Skimmer(StateUnpickler):
    """Reads only the plain data in a pickle. Runs none of its code."""

    def find_class(self, module: str, name: str) -> Any:
        return Anything


def _puts(numbers: range) -> bytearray:
    """Return the part of a pickle that puts one object into the memo under many numbers."""
    raw = array("I", numbers)
    if sys.byteorder == "big":
        raw.byteswap()
    arguments = raw.tobytes()
    program = bytearray(5 * len(numbers))
    program[0::5] = pickle.LONG_BINPUT * len(numbers)
    for place in range(4):
        program[place + 1 :: 5] = arguments[place::4]
    return program


def is_whole(obj: Any) -> bool:
    """Return whether an object cannot be half built: a plain value, or something imported."""
    if isinstance(obj, (type, types.FunctionType)):
        return obj.__module__ != "__main__"
    return type(obj) in _PLAIN


_PLAIN = (str, bytes, int, float, complex, bool, types.ModuleType, types.BuiltinFunctionType)


def as_tuple(reference: list[Any]) -> Reference:
    """Return a reference from JSON as it was before."""
    return tuple(tuple(part) if isinstance(part, list) else part for part in reference)
