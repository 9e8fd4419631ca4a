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
    base = array.base
    # What as_strided() returns has an object in between.
    while type(base).__name__ == "DummyArray" or (
        type(base) is type(array) and base.base is not None
    ):
        base = base.base
    if type(base) is memoryview:
        base = base.obj
    # It is held by the array, by this variable, and by the call.
    if base is None or sys.getrefcount(base) <= 3:
        return NotImplemented
    if type(base) is type(array):
        if not base.flags.forc or (array.dtype.hasobject and array.dtype != base.dtype):
            return NotImplemented
        start = base.__array_interface__["data"][0]
    elif type(base) is bytearray:
        start = _numpy().frombuffer(base, "u1").__array_interface__["data"][0]
    else:
        return NotImplemented
    offset = array.__array_interface__["data"][0] - start
    arguments = (base, array.shape, array.dtype, offset, array.strides, array.flags.writeable)
    return make_view, arguments


def reduce_subclass(array: Any) -> Any:
    """Return how to save an array of a subclass that has attributes."""
    attributes = getattr(array, "__dict__", None)
    ndarray = _numpy().ndarray
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
