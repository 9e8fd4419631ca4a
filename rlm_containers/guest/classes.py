"""Saves the classes that cells define: first an empty class, then what is in it.

dill saves such a class as a call of ``type(name, bases, dict)``, so everything in it must exist
before the class does. That fails for a class that refers to itself, and for enums, whose members
refer to their class. Type variables dill looks up by name in a module that is still empty. Here a
class is made empty, is known to the pickler from then on, and is filled in a second step (the
``state_setter`` of https://docs.python.org/3/library/pickle.html#object.__reduce__).

State files name the functions of this module, so the module and they keep their names.
"""

from __future__ import annotations

import abc
import enum
import types
import typing
from collections.abc import Callable
from typing import Any

#: Attributes that every class makes by itself, or that must not be copied.
_OWN = frozenset(("__dict__", "__weakref__", "_abc_impl", "__abstractmethods__", "__slots__"))

#: Attributes that an enum makes from its members.
_ENUM_OWN = frozenset(
    (
        "_generate_next_value_",
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_new_member_",
        "_use_args_",
        "_unhashable_values_",
        "_unhashable_values_map_",
        "_hashable_values_",
        "_value2member_map_",
        "_flag_mask_",
        "_all_bits_",
        "_singles_mask_",
        "_inverted_",
        "_boundary_",
        "_value_repr_",
        "__new__",
        "__new_member__",
    )
)

_ABSTRACT = "__abstractmethods__"

#: ``(function, arguments, state, None, None, state_setter)``, or the first two of them.
Reduction = tuple[Any, ...]


def reduce_class(cls: type) -> Reduction | None:
    """Return how to save a class of a cell, or ``None`` for a class that can be imported."""
    if cls.__module__ != "__main__":
        return None
    if _is_typed_dict(cls):
        fields = dict(cls.__annotations__)
        return (_make_typed_dict, (cls.__name__, fields, cls.__total__))  # type: ignore[attr-defined]
    attributes = {name: value for name, value in vars(cls).items() if name not in _OWN}
    slots = vars(cls).get("__slots__")
    for name in (slots,) if isinstance(slots, str) else slots or ():
        attributes.pop(_mangled(cls, name), None)  # the slot's descriptor
    if isinstance(cls, enum.EnumMeta):
        # These include aliases and composed flags.
        named: dict[str, Any] = dict(cls.__members__)
        members = {name: member.value for name, member in named.items()}
        for name in (*members, *_ENUM_OWN):
            attributes.pop(name, None)
        # A member's value is that after an enum's own __new__ or __init__.
        arguments = (type(cls), cls.__name__, cls.__bases__, members)
        return (_make_enum, arguments, attributes, None, None, _fill_class)
    body = {"__module__": "__main__"}
    for name in ("__slots__", "__orig_bases__"):  # typing.Generic needs the second at once
        if name in vars(cls):
            body[name] = vars(cls)[name]
    made = (type(cls), cls.__name__, cls.__bases__, body)
    return (_make_class, made, attributes, None, None, _fill_class)


def reduce_type_variable(variable: Any) -> Reduction | None:
    """Return how to save a ``TypeVar``, ``ParamSpec`` or ``NewType`` of a cell."""
    if variable.__module__ != "__main__":
        return None
    if isinstance(variable, typing.TypeVar):
        arguments = (
            variable.__name__,
            variable.__constraints__,
            variable.__bound__,
            variable.__covariant__,
            variable.__contravariant__,
        )
        return (_make_type_variable, arguments)
    if hasattr(variable, "__supertype__"):
        return (_make_new_type, (variable.__name__, variable.__supertype__))
    return (_make_named, (type(variable), variable.__name__))


# Functions that pickles call. Names and parameters stay: older state files have them.


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
        names = {name for base in cls.__bases__ for name in getattr(base, _ABSTRACT, ())}
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


def _is_typed_dict(cls: type) -> bool:
    return type(cls).__name__ == "_TypedDictMeta" and hasattr(cls, "__total__")


def _mangled(cls: type, slot: str) -> str:
    """Return the name of a slot's attribute. Python mangles private names."""
    if slot.startswith("__") and not slot.endswith("__"):
        return "_{}{}".format(cls.__name__.lstrip("_"), slot)
    return slot
