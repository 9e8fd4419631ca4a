"""Saves numpy's arrays: views that share memory, and subclasses with attributes.

pickle saves a view as an array of its own. It makes an array that does not own its memory, and
forgets the attributes of a subclass.

State files name the functions below "What state files call", so they keep their names.
"""

from __future__ import annotations

import sys
from typing import Any


def reduce_array(array: Any) -> Any:
    """Return how to save an array: a view by what it shows, if others refer to that as well."""
    base = _base(array)
    # It is held by the array, by this variable, and by the call.
    if base is None or sys.getrefcount(base) <= 3:
        return NotImplemented
    arguments = _place(array, base)
    return NotImplemented if arguments is None else (make_view, arguments)


def _place(array: Any, base: Any) -> tuple[Any, ...] | None:
    """Return what :func:`make_view` makes an equal view of."""
    if type(base) is _numpy().ndarray:
        if not base.flags.forc or (array.dtype.hasobject and array.dtype != base.dtype):
            return None
        start = base.__array_interface__["data"][0]
    elif type(base) is bytearray or _is_array_of_library(base):
        start = _numpy().frombuffer(base, "u1").__array_interface__["data"][0]
    else:
        return None
    offset = array.__array_interface__["data"][0] - start
    return base, array.shape, array.dtype, offset, array.strides, array.flags.writeable


def _base(array: Any) -> Any:
    """Return what an array shows, if that is another object's."""
    base = array.base
    passed = (type(array), _numpy().ndarray)
    # What as_strided() returns has an object in between.
    while type(base).__name__ == "DummyArray" or (type(base) in passed and base.base is not None):
        base = base.base
    return base.obj if type(base) is memoryview else base


def _is_array_of_library(base: Any) -> bool:
    return type(base) is getattr(sys.modules.get("array"), "array", None)


def reduce_subclass(array: Any) -> Any:
    """Return how to save an array of a subclass that has attributes, or shares its memory."""
    attributes = getattr(array, "__dict__", None)
    ndarray = _numpy().ndarray
    base = _base(array)
    # It is held by the array, by this variable, and by the call.
    if type(base) is ndarray and sys.getrefcount(base) > 3:
        place = _place(array, base)
        if place is not None:
            made = (type(array), *place)
            return make_subclass_view, made, attributes or None, None, None, fill_attributes
    if not attributes or type(array).__reduce__ is not ndarray.__reduce__:
        return NotImplemented
    function, arguments, state = array.__reduce__()
    return function, arguments, (state, attributes), None, None, fill_subclass


def _numpy() -> Any:
    return sys.modules["numpy"]


# What state files call


def make_view(base: Any, shape: Any, dtype: Any, offset: int, strides: Any, writeable: bool) -> Any:
    """Make an array that shares the memory of another, or of a ``bytearray``."""
    numpy = _numpy()
    if dtype.hasobject:
        flat = base.ravel("K")[offset // dtype.itemsize :]
        view = numpy.lib.stride_tricks.as_strided(flat, shape, strides)
    else:
        buffer = base.ravel("K") if isinstance(base, numpy.ndarray) else base
        view = numpy.ndarray(shape, dtype, buffer, offset, strides)
    if not writeable:
        view.flags.writeable = False
    return view


def own_array(make: Any) -> Any:
    """Return a function like numpy's ``_frombuffer``, whose arrays own their memory.

    Args:
        make: numpy's.
    """

    def make_own(*arguments: Any) -> Any:
        shown = make(*arguments)
        array = shown.copy(order="K")
        array.flags.writeable = shown.flags.writeable
        return array

    return make_own


def fill_subclass(array: Any, state: tuple[Any, dict[str, Any]]) -> None:
    """Give an array its contents, and its attributes."""
    own, attributes = state
    array.__setstate__(own)
    array.__dict__.update(attributes)


def make_subclass_view(cls: type, *place: Any) -> Any:
    """Make an array of a subclass that shares the memory of a plain one."""
    return make_view(*place).view(cls)


def fill_attributes(array: Any, attributes: dict[str, Any]) -> None:
    """Give an array its attributes."""
    array.__dict__.update(attributes)
