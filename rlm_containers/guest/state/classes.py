"""Saves the classes that cells define, as the finished objects that they are.

To run a ``class`` statement again would run the hooks of its bases, metaclasses and descriptors
again: they would register it twice, or miss the keywords that it had. So the class is made by the
built-in ``type.__new__`` without any hook, is known to the pickler from then on, and is given its
attributes in a second step.

State files name the functions below "What state files call", so they keep their names.
"""

from __future__ import annotations

import _abc  # type: ignore[import-not-found]
import abc
import contextlib
import copyreg
import enum
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

#: Attributes that every class makes by itself, or that are given when it is made.
_OWN = frozenset(
    ("__dict__", "__weakref__", "__module__", "__slots__", "__orig_bases__", "_abc_impl")
)

#: Names that mean something else if they are set later: a class has them from ``type``.
_OF_TYPES = frozenset(
    (
        "__base__",
        "__bases__",
        "__basicsize__",
        "__class__",
        "__dictoffset__",
        "__flags__",
        "__itemsize__",
        "__mro__",
        "__name__",
        "__text_signature__",
        "__weakrefoffset__",
    )
)

#: In the flags of a type: it was made by a class statement, or like one. ``Py_TPFLAGS_HEAPTYPE``.
HEAP_TYPE = 1 << 9

# Running no code of a metaclass:
get_module: Callable[[type], Any] = type.__dict__["__module__"].__get__
get_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
get_dict: Callable[[type], Any] = type.__dict__["__dict__"].__get__


def is_subclass_of(cls: type, module: str, name: str) -> bool:
    """Return whether a class is, or has as a base, one of a library that may not be imported."""
    return any(base.__name__ == name and get_module(base) == module for base in get_mro(cls))


_METHODS = frozenset((types.FunctionType, classmethod, staticmethod, property))
_SIMPLE = _METHODS | frozenset((bool, float, int, str, type(None)))

#: ``(function, arguments, state, None, None, state_setter)``, or the first two of them.
Reduction = tuple[Any, ...]


def reduce_class(cls: type) -> Reduction:
    """Return how to save a class by value."""
    body: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    attributes = {}
    slots = []
    for name, value in vars(cls).items():
        if isinstance(value, types.MemberDescriptorType) and value.__objclass__ is cls:
            slots.append(name)
        elif name in _OF_TYPES:
            body[name] = value
        elif name not in _OWN:
            attributes[name] = value
    if "__slots__" in vars(cls):
        # Python's own names of them: it has mangled private ones.
        body["__slots__"] = slots + [n for n in ("__dict__", "__weakref__") if n in vars(cls)]
        attributes["__slots__"] = vars(cls)["__slots__"]
    if "__orig_bases__" in vars(cls):  # typing.Generic needs it at once
        body["__orig_bases__"] = vars(cls)["__orig_bases__"]
    state: tuple[Any, ...] = (attributes, _virtual_subclasses(cls), _virtual_bases(cls))
    if not all(type(value) in _SIMPLE for value in attributes.values()):
        # It may hold objects of the class, and to load these may call its methods.
        methods = {name: value for name, value in attributes.items() if type(value) in _METHODS}
        state = (Methods(cls, methods), *state) if methods else state
    made = (type(cls), cls.__name__, cls.__bases__, body)
    return make_class, made, state, None, None, fill_class


class Methods:
    """The methods of a class, which are there before its other attributes are loaded."""

    def __init__(self, cls: type, methods: dict[str, Any]) -> None:
        self._cls = cls
        self._methods = methods

    def __reduce__(self) -> Any:
        return fill_methods, (self._cls, self._methods)


def is_certain(cls: type) -> bool:
    """Return whether a class can be loaded if it was saved."""
    return type(cls) is type or (type(cls) is abc.ABCMeta and not _virtual_subclasses(cls))


def reduce_member(member: enum.Enum) -> Reduction:
    """Return how to save a member of an enum of a cell.

    Enums say that a member is what their class returns for its value. While the class is loaded, it
    has no members.
    """
    cls = type(member)
    base: Any = next(base for base in cls.__mro__ if _is_built_in(vars(base).get("__new__")))
    arguments: tuple[Any, ...] = ()
    if base is not object:
        new_arguments = getattr(base, "__getnewargs__", None)
        arguments = new_arguments(member) if new_arguments else base.__reduce_ex__(member, 2)[1]
    names = [*getattr(member, "__dict__", ()), *copyreg._slotnames(cls)]  # type: ignore[attr-defined]
    state = {name: object.__getattribute__(member, name) for name in names}
    return make_member, (base, cls, arguments), state, None, None, fill_member


def reduce_type_variable(variable: Any) -> Reduction | None:
    """Return how to save a ``TypeVar`` or the like of a cell; ``None`` for an imported one."""
    module, name = variable.__module__, variable.__name__
    if module != "__main__" and getattr(sys.modules.get(module), name, None) is variable:
        return None
    kind = type(variable)
    if hasattr(variable, "__supertype__"):  # a NewType
        return make_type_variable, (kind, module, (name, variable.__supertype__), {})
    if hasattr(variable, "__value__"):  # of a `type` statement
        keywords = {"type_params": variable.__type_params__}
        return make_type_variable, (kind, module, (name, variable.__value__), keywords)
    keywords = {}
    for keyword in ("bound", "covariant", "contravariant", "infer_variance"):
        value = getattr(variable, "__{}__".format(keyword), None)
        if value:
            keywords[keyword] = value
    if getattr(variable, "has_default", bool)():  # from 3.13 on
        keywords["default"] = variable.__default__
    constraints = getattr(variable, "__constraints__", ())
    return make_type_variable, (kind, module, (name, *constraints), keywords)


def _virtual_subclasses(cls: type) -> tuple[type, ...]:
    """Return the classes that were registered with an abstract base class."""
    if not issubclass(type(cls), abc.ABCMeta) or "_abc_impl" not in vars(cls):
        return ()
    registered = (reference() for reference in _abc._get_dump(cls)[0])
    found = [subclass for subclass in registered if subclass is not None]
    # In an order that stays, or the state would look changed.
    return tuple(sorted(found, key=lambda subclass: (subclass.__module__, subclass.__qualname__)))


def _virtual_bases(cls: type) -> tuple[type, ...]:
    """Return the imported abstract base classes that a class of a cell was registered with."""
    token = abc.get_cache_token()
    if token != _registrations.token:
        _registrations.token = token
        _registrations.bases = list(_find_registrations())
    return tuple(base for base, subclass in _registrations.bases if subclass is cls)


class _Registrations:
    """The classes of cells that are registered with imported abstract base classes."""

    token: object = None
    bases: list[tuple[type, type]] = []  # noqa: RUF012 - replaced as a whole


_registrations = _Registrations()


def _find_registrations() -> Iterator[tuple[type, type]]:
    seen: set[int] = set()
    waiting: list[type] = [object]
    while waiting:
        cls = waiting.pop()
        if id(cls) in seen:
            continue
        seen.add(id(cls))
        waiting += type.__subclasses__(cls)
        if issubclass(type(cls), abc.ABCMeta) and cls.__module__ != "__main__":
            for subclass in _virtual_subclasses(cls):
                if subclass.__module__ == "__main__":
                    yield cls, subclass


def _is_built_in(method: Any) -> bool:
    """Return whether a method in the dict of a class is not Python code."""
    method = getattr(method, "__func__", method)  # of a static method
    return method is not None and not isinstance(method, types.FunctionType)


def _built_in(cls: type, name: str) -> Any:
    """Return a method that a class has inherited from one that is made in C."""
    return getattr(next(base for base in cls.__mro__ if _is_built_in(vars(base).get(name))), name)


@contextlib.contextmanager
def _no_hooks(bases: tuple[type, ...]) -> Iterator[None]:
    """Do not tell these classes that they have a new subclass."""
    hooks = []
    mros = (cls for base in bases for cls in base.__mro__[:-1])
    for base in {id(cls): cls for cls in mros}.values():
        hook = vars(base).get("__init_subclass__")
        if hook is not None:
            try:
                type.__setattr__(base, "__init_subclass__", _DO_NOTHING)
            except TypeError:
                continue  # it is made in C, and cannot be changed
            hooks.append((base, hook))
    try:
        yield
    finally:
        for base, hook in hooks:
            type.__setattr__(base, "__init_subclass__", hook)


_DO_NOTHING: Any = classmethod(lambda cls, **keywords: None)
_SAY_NOTHING: Any = classmethod(lambda cls, other: NotImplemented)


# What state files call


def make_class(meta: type, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
    """Make a class without attributes."""
    with _no_hooks(bases):
        cls: type = _built_in(meta, "__new__")(meta, name, bases, body)
    if issubclass(meta, abc.ABCMeta):
        _abc._abc_init(cls)
    return cls


def fill_methods(cls: type, methods: dict[str, Any]) -> None:
    """Give a class its methods."""
    set_attribute: Callable[[type, str, Any], None] = _built_in(type(cls), "__setattr__")
    for name, value in methods.items():
        set_attribute(cls, name, value)


def fill_class(cls: type, state: tuple[Any, ...]) -> None:
    """Give a class its attributes, and register it and its virtual subclasses."""
    *_, attributes, subclasses, bases = state
    set_attribute: Callable[[type, str, Any], None] = _built_in(type(cls), "__setattr__")
    if subclasses:
        # This asks whether they are subclasses already, which the class may answer by itself.
        set_attribute(cls, "__subclasshook__", _SAY_NOTHING)
        for subclass in subclasses:
            _abc._abc_register(cls, subclass)
        type.__delattr__(cls, "__subclasshook__")
    for name, value in attributes.items():
        if type(value) in _METHODS and name in vars(cls):
            type.__delattr__(cls, name)  # it has its methods already: keep the order
        set_attribute(cls, name, value)
        if type(value) is property and hasattr(value, "__set_name__"):
            value.__set_name__(cls, name)  # for messages, from 3.13 on
    for base in bases:
        _abc._abc_register(base, cls)


def make_member(base: type, cls: type, arguments: tuple[Any, ...]) -> Any:
    """Make a member of an enum, whose first base in C is ``base``."""
    return base.__new__(cls, *arguments)


def fill_member(member: Any, state: dict[str, Any]) -> None:
    """Give a member of an enum its attributes."""
    for name, value in state.items():
        object.__setattr__(member, name, value)


def make_type_variable(
    kind: Any, module: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    """Make a ``TypeVar``, or the like, of a cell."""
    made = kind(*arguments, **keywords)
    with contextlib.suppress(AttributeError):  # a type alias says where it is from by itself
        made.__module__ = module
    return made
