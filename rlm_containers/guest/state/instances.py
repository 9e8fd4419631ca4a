"""Saves objects whose classes have methods that pickle would run, as the finished objects they are.

pickle makes an object by ``__new__`` or by a call of its class, and fills it by ``__setitem__``,
``append`` or ``__setattr__``. A class that changes what it is given would change it once more, one
that counts or registers its objects would do so twice, and one with other parameters would fail. So
the built-in base of the class makes the object, and the methods of that base fill it.

A class that says by itself how its objects are saved is left to pickle.

State files name the functions below "What state files call", so they keep their names.
"""

from __future__ import annotations

import collections
import copyreg
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .classes import HEAP_TYPE, get_dict, get_module, get_mro, is_subclass_of

#: Methods by which a class says how its objects are made, and what state they have.
_MAKING = frozenset(("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"))
_STATE = frozenset(("__getstate__", "__setstate__"))
#: What pickle asks an object for that has no state yet, or that may lie about its class.
_ASKED = frozenset(("__getattr__", "__getattribute__", "__class__"))

#: What pickle calls of a container.
_CALLED = frozenset(
    (
        *("__init__", "__new__", "__iter__", "__len__", "__getitem__", "__setitem__"),
        *("__setattr__", "add", "append", "extend", "items", "update"),
    )
)

#: Built-in bases whose objects pickle makes without a call of their class.
_PLAIN_BASES = frozenset((object, int, float, complex, str, bytes, tuple))
#: Bases whose class is called, and whose objects lose their attributes; by module and name, since
#: not all are imported here.
_CALLED_BASES = frozenset(
    (
        ("builtins", "frozenset"),
        ("datetime", "date"),
        ("datetime", "datetime"),
        ("datetime", "time"),
        ("datetime", "timedelta"),
        ("datetime", "tzinfo"),
        ("decimal", "Decimal"),
    )
)
_CONTAINERS = (
    list,
    set,
    collections.OrderedDict,
    collections.defaultdict,
    dict,
    collections.deque,
)

#: Modules whose classes leave out of what they save what a subclass has added.
_FORGETFUL = frozenset(("fractions", "ipaddress", "pathlib", "random"))

_DESCRIPTORS = frozenset((property, classmethod, staticmethod))


def find_handler(kind: type) -> Callable[[Any], Any] | None:
    """Return what reduces the objects of a class, or ``None`` if that is pickle's to do."""
    if kind in copyreg.dispatch_table:
        return None
    mro = get_mro(kind)
    if is_subclass_of(kind, "pandas.core.generic", "NDFrame"):
        return _reduce_frame
    if not _is_python(kind):
        return None
    base = next(cls for cls in mro if not _is_python(cls))
    own = [cls for cls in mro if _is_python(cls)]  # some may come after the base
    if base in _CONTAINERS:
        told = [cls for cls in own if get_module(cls) != "collections"]  # which has Counter
        if not told or _first(told, _MAKING | _STATE) is not None:
            return None
        loses = base is collections.defaultdict or collections.Counter in own
        if not loses and _first(told, _CALLED | _ASKED) is None:
            return None
        return functools.partial(_reduce_container, base)
    new, making = _first(own, {"__new__"}), _first(own, _MAKING)
    # A library that has both knows how they go together.
    if making is not None and (new is None or making <= new or get_module(own[new]) != "__main__"):
        forgets = making > 0 and get_module(own[making]).partition(".")[0] in _FORGETFUL
        forgets = forgets and _first(own[:making], _STATE) is None
        is_added_to = get_module(kind).partition(".")[0] not in _FORGETFUL
        return _reduce_with_attributes if forgets and is_added_to else None
    if base in _DESCRIPTORS:
        return functools.partial(_reduce_descriptor, base)
    is_called = (get_module(base), base.__name__) in _CALLED_BASES
    if not is_called and base not in _PLAIN_BASES:
        return None
    states = [get_dict(own[place])[name] for place, name in _defined(own, _STATE)]
    # Those of dataclasses with slots, which need the class to be filled.
    runs_code = any(getattr(method, "__module__", "") == "dataclasses" for method in states)
    if states and not runs_code:
        return None if new is None else functools.partial(_reduce_with_state, base)
    runs_code = runs_code or is_called or new is not None or _first(own, _ASKED) is not None
    runs_code = runs_code or (_first(own, {"__setattr__"}) is not None and bool(_slots(kind)))
    hashes = [get_dict(own[place])[name] for place, name in _defined(own, {"__hash__"})]
    if hashes and hashes[0] is not None:
        if not runs_code and not _slots(kind) and kind.__dictoffset__:
            return functools.partial(_reduce_hashed_simple, base)
        return functools.partial(_reduce_hashed, base, runs_code)
    return functools.partial(_reduce_instance, base) if runs_code else None


def _is_python(cls: type) -> bool:
    """Return whether a class was made by a class statement, or like one."""
    if not cls.__flags__ & HEAP_TYPE:
        return False
    for value in get_dict(cls).values():
        if type(value) in _IN_C and value.__objclass__ is cls:
            return False
        if type(value) is types.BuiltinFunctionType and value.__self__ is cls:
            return False
    return True


_IN_C = (types.WrapperDescriptorType, types.MethodDescriptorType)


def _defined(classes: list[type], names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield each of these names that a class defines, and the place of the class."""
    for place, cls in enumerate(classes):
        for name in names:
            if name in get_dict(cls):
                yield place, name


def _first(classes: list[type], names: Iterable[str]) -> int | None:
    """Return the place of the first class that defines one of these names."""
    return next((place for place, _ in _defined(classes, names)), None)


def _slots(cls: type) -> list[str]:
    return copyreg._slotnames(cls)  # type: ignore[attr-defined, no-any-return]


def _reduce_instance(base: type, obj: Any) -> Any:
    made = (base, type(obj), _arguments(base, obj))
    return make_instance, made, _attributes(obj), None, None, fill_instance


def _reduce_hashed(base: type, runs_code: bool, obj: Any) -> Any:
    """Return how to save an object that may be in a set which it holds itself, as in a graph.

    The set needs its hash. So the object has its plain attributes before that is loaded.
    """
    state = _attributes(obj)
    plain = [{n: v for n, v in part.items() if _is_plain(v)} for part in map(dict, state)]
    if sum(map(len, plain)) == sum(map(len, state)):
        return _reduce_instance(base, obj) if runs_code else NotImplemented
    made = (base, type(obj), _arguments(base, obj))
    return make_instance, made, (Early(obj, plain), *state), None, None, fill_instance


def _reduce_hashed_simple(base: type, obj: Any) -> Any:
    """Do the same quickly for an object without slots, of which there may be many."""
    attributes = object.__getattribute__(obj, "__dict__")
    if _ATOMS.issuperset(map(type, attributes.values())):
        return NotImplemented
    return _reduce_hashed(base, False, obj)


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, value)))


_ATOMS = frozenset((str, bytes, int, float, bool, type(None)))


class Early:
    """Attributes of an object that it has before the others are loaded."""

    def __init__(self, obj: Any, attributes: list[dict[str, Any]]) -> None:
        self._obj = obj
        self._attributes = attributes

    def __reduce__(self) -> Any:
        return fill_instance, (self._obj, self._attributes)


def _reduce_with_attributes(obj: Any) -> Any:
    """Return how to save an object as its class says, and its attributes, which that leaves out."""
    return _add_attributes(obj, _attributes(obj)[0])


def _reduce_frame(frame: Any) -> Any:
    """Return how to save a frame or series of pandas with the attributes that a cell has set.

    It leaves them out itself, such as ``frame.name``.
    """
    known = {*frame._internal_names_set, *frame._metadata, *frame._accessors}
    added = {
        name: value
        for name, value in vars(frame).items()
        if name not in known and not name.startswith("_")
    }
    return _add_attributes(frame, added) if added else NotImplemented


def _add_attributes(obj: Any, attributes: dict[str, Any]) -> Any:
    """Return how to save an object as its class says, and these attributes."""
    reduction = obj.__reduce_ex__(4)
    own = reduction[2] if len(reduction) > 2 else None
    return (*reduction[:2], (own, (attributes, {})), None, None, fill_with_attributes)


def _reduce_with_state(base: type, obj: Any) -> Any:
    """Return how to save an object whose class says what its state is, but not how it is made."""
    state = object.__reduce_ex__(obj, 4)[2]
    return make_instance, (base, type(obj), _arguments(base, obj)), state


def _arguments(base: Any, obj: Any) -> Any:
    """Return what the built-in base makes an equal object of."""
    if base is object:
        return ()
    if base in _PLAIN_BASES:
        return base.__getnewargs__(obj)
    return base.__reduce_ex__(obj, 4)[1]


def _attributes(obj: Any) -> tuple[Any, dict[str, Any]]:
    """Return an object's ``__dict__``, empty if it has none, and its slots."""
    read = functools.partial(object.__getattribute__, obj)
    slots = {}
    for name in _slots(type(obj)):
        try:
            slots[name] = read(name)
        except AttributeError:
            pass  # it has no value
    try:
        return read("__dict__"), slots
    except AttributeError:
        return {}, slots


def _reduce_container(base: Any, obj: Any) -> Any:
    if base is list or base is set:
        contents: tuple[Any, ...] = (list(base.__iter__(obj)),)
    elif base is collections.deque:
        contents = (list(base.__iter__(obj)), base.maxlen.__get__(obj))
    else:
        contents = (list(base.keys(obj)), list(base.values(obj)))
        if base is collections.defaultdict:
            factory = vars(base)["default_factory"].__get__(obj)
            contents = (*contents, factory)
    state = (_attributes(obj), contents)
    return make_instance, (base, type(obj), ()), state, None, None, fill_container


def _reduce_descriptor(base: Any, obj: Any) -> Any:
    if base is property:
        arguments: tuple[Any, ...] = (obj.fget, obj.fset, obj.fdel, obj.__doc__)
    else:
        arguments = (obj.__func__,)
    state = (_attributes(obj), arguments)
    return make_instance, (base, type(obj), ()), state, None, None, fill_descriptor


# What state files call


def make_instance(base: Any, cls: type, arguments: tuple[Any, ...]) -> Any:
    """Make an object of a class, whose first base in C is ``base``."""
    return base.__new__(cls, *arguments)


def fill_instance(obj: Any, state: Sequence[Any]) -> None:
    """Give an object its attributes."""
    *_, attributes, slots = state
    for name, value in slots.items():
        object.__setattr__(obj, name, value)
    if type(attributes) is not dict:
        object.__setattr__(obj, "__dict__", attributes)
    elif attributes:
        object.__getattribute__(obj, "__dict__").update(attributes)


def fill_with_attributes(obj: Any, state: tuple[Any, Sequence[Any]]) -> None:
    """Give an object the state that it has saved by itself, and its attributes."""
    own, attributes = state
    if own is not None:
        obj.__setstate__(own)
    fill_instance(obj, attributes)


def fill_descriptor(obj: Any, state: tuple[Sequence[Any], tuple[Any, ...]]) -> None:
    """Give a property or the like, of a subclass, its functions and attributes."""
    attributes, functions = state
    base: Any = next(base for base in get_mro(type(obj)) if base in _DESCRIPTORS)
    base.__init__(obj, *functions)
    fill_instance(obj, attributes)


def fill_container(obj: Any, state: tuple[tuple[Any, dict[str, Any]], tuple[Any, ...]]) -> None:
    """Give an object of a subclass of a container its attributes and contents."""
    attributes, contents = state
    fill_instance(obj, attributes)
    base: Any = next(base for base in get_mro(type(obj)) if base in _CONTAINERS)
    if base is list:
        list.extend(obj, *contents)
    elif base is set:
        set.update(obj, *contents)
    elif base is collections.deque:
        collections.deque.__init__(obj, *contents)
    else:
        keys, values, *factory = contents
        if factory:
            collections.defaultdict.__init__(obj, *factory)
        set_item = base.__setitem__
        for key, value in zip(keys, values):  # noqa: B905 - not in 3.9
            set_item(obj, key, value)
