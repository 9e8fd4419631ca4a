"""Saves weak references, with what is called when their objects are gone.

An object that nothing else holds after a restore is gone then, and its references say so.

State files name the functions below "What state files call", so they keep their names.
"""

from __future__ import annotations

import weakref
from typing import Any


def reduce_reference(reference: Any) -> Any:
    """Return how to save a weak reference."""
    target, callback = reference(), reference.__callback__
    if target is None:
        return make_dead, ()
    if type(reference) is weakref.KeyedRef:
        return weakref.KeyedRef, (target, callback, reference.key)
    if type(reference) is weakref.WeakMethod:  # its callback is its own
        return weakref.WeakMethod, (target,)
    return make_reference, (target, callback)


def reduce_finalizer(finalizer: Any) -> Any:
    """Return how to save a ``weakref.finalize``."""
    found = finalizer.peek()
    state = found and (*found, finalizer.atexit)
    return make_finalizer, (type(finalizer),), state, None, None, fill_finalizer


#: By the name of a type.
HANDLERS: dict[str, Any] = {
    "ReferenceType": reduce_reference,
    "weakref": reduce_reference,
    "KeyedRef": reduce_reference,
    "WeakMethod": reduce_reference,
    "finalize": reduce_finalizer,
}


# What state files call


def make_reference(target: Any, callback: Any) -> Any:
    """Make a weak reference."""
    return weakref.ref(target, callback)


def make_dead() -> Any:
    """Make a weak reference to an object that is gone."""
    return weakref.ref(_Gone())


class _Gone:
    pass


def make_finalizer(cls: Any) -> Any:
    """Make a finalizer that is dead."""
    return object.__new__(cls)


def fill_finalizer(finalizer: Any, state: tuple[Any, ...] | None) -> None:
    """Bring a finalizer to life."""
    if state is not None:
        target, function, arguments, keywords, at_exit = state
        weakref.finalize.__init__(finalizer, target, function, *arguments, **keywords)
        finalizer.atexit = at_exit
