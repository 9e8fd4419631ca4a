"""How to save what pickle alone cannot: what cells define, and a few types of the library.

A reduction is what ``__reduce__`` may return, see
https://docs.python.org/3/library/pickle.html#object.__reduce__. An object is made empty, is known
to the pickler from then on, and is filled in a second step (the ``state_setter``). So functions and
classes may refer to themselves.

For types that only dill can save, dill's functions make the reduction.
"""

from __future__ import annotations

import _collections_abc
import enum
import functools
import marshal
import pickle
import sys
import types
import typing
from collections.abc import Callable, Container
from typing import Any

from . import arrays, caches, classes, constructors, exceptions, instances, library
from .classes import HEAP_TYPE, get_dict, get_module, get_mro, is_subclass_of
from .modules import Modules

Handler = Callable[[Any], Any]

#: Packages whose objects can be loaded if they can be saved. Exceptions are not trusted.
_TRUSTED = frozenset(
    (
        "_thread",
        "array",
        "builtins",
        "collections",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "numpy",
        "operator",
        "pandas",
        "pathlib",
        "random",
        "re",
        "threading",
        "types",
        "typing",
        "uuid",
        "zoneinfo",
    )
)

#: Methods of a class that run when an object of it is loaded, or change what is loaded.
_HOOKS = frozenset(
    (
        "__getattr__",
        "__getattribute__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__getstate__",
        "__hash__",
        "__new__",
        "__reduce__",
        "__reduce_ex__",
        "__setattr__",
        "__setstate__",
    )
)

#: Types that only dill can save.
_DILLS = frozenset(
    (
        "CallableProxyType",
        "Context",
        "ProxyType",
        "PyCapsule",
        "abstractclassmethod",
        "abstractproperty",
        "abstractstaticmethod",
        "dict_items",
        "dict_keys",
        "dict_values",
        "odict_items",
        "odict_keys",
        "odict_values",
        "super",
        "weakcallableproxy",
        "weakproxy",
    )
)

_TYPE_VARIABLES = tuple(
    getattr(typing, name)
    for name in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "TypeAliasType")
    if isinstance(getattr(typing, name, None), type)
)


class Reductions:
    """Finds the reductions of one pickler.

    Args:
        patches: names that lead to something else in a later process, such as ``json.dumps``, since
            cells have set them.

    Attributes:
        handlers: by type, the function that returns an object's reduction or ``NotImplemented``;
            ``None`` for a type that pickle saves by itself.
        doubtful: set when an object is saved that may not load again.
        filenames: the files that code and tracebacks are from.
    """

    def __init__(self, patches: Container[str] = ()) -> None:
        self._patches = patches
        self._modules = Modules()
        self.handlers: dict[type, Handler | None] = {
            **_HANDLERS,
            types.CodeType: self._reduce_code,
            types.FunctionType: self._reduce_function,
            types.ModuleType: self._modules.reduce,
            types.TracebackType: self._reduce_traceback,
            _CACHE: self._reduce_cache,
        }
        self.doubtful = False
        self.filenames: set[str] = set()

    def has_module(self, module: types.ModuleType) -> bool:
        """Return whether a module was saved with all that is in it."""
        return self._modules.has(module)

    def find(self, kind: type) -> Handler | None:
        """Find the handler of a type, and remember it."""
        handler = self._choose(kind)
        if not (issubclass(kind, type) or _is_certain(kind)):
            handler = self._doubting(handler)
        self.handlers[kind] = handler
        return handler

    def _choose(self, kind: type) -> Handler | None:
        if issubclass(kind, type):
            return self._reduce_class
        if issubclass(kind, enum.Enum) and not self._is_named(kind):
            return classes.reduce_member
        if is_subclass_of(kind, "numpy", "ndarray"):
            is_subclass = get_module(kind) != "numpy" or kind.__name__ != "ndarray"
            return arrays.reduce_subclass if is_subclass else arrays.reduce_array
        if issubclass(kind, BaseException):
            return exceptions.reduce_exception
        name = kind.__name__
        module = get_module(kind)
        known = library.find_handler(module, name)
        if known is not None:
            return known
        if name in _DILLS and module != "__main__":
            return _by_dill(kind)
        if "dill" in sys.modules:  # a cell may have told dill how to save its own types
            told = _by_dill(kind, of_cells=True)
            if told is not None:
                return told
        return instances.find_handler(kind)

    def _doubting(self, handler: Handler | None) -> Handler:
        def doubt(obj: Any) -> Any:
            self.doubtful = True
            return NotImplemented if handler is None else handler(obj)

        return doubt

    def _reduce_class(self, cls: type) -> Any:
        if self._is_named(cls):
            return NotImplemented
        if get_module(cls) == "builtins":
            place = _UNNAMED_TYPES.get(cls)
            if place is not None:
                return constructors.named, place
            # exec() makes such classes, too, in a namespace without a name.
            if type(get_dict(cls).get("__module__")) is not str:
                return NotImplemented
        if not cls.__flags__ & HEAP_TYPE:
            return NotImplemented
        self.doubtful = self.doubtful or not classes.is_certain(cls)
        return classes.reduce_class(cls)

    def _reduce_function(self, function: types.FunctionType) -> Any:
        if self._is_named(function):
            return NotImplemented
        attributes = ((name, getattr(function, name, None)) for name in _FUNCTION_ATTRIBUTES)
        state = {name: value for name, value in attributes if value}
        namespace = self._modules.namespace(function.__globals__)
        arguments = (function.__code__, namespace, function.__name__, function.__closure__)
        return constructors.make_function, arguments, state, None, None, constructors.fill_function

    def _reduce_cache(self, cache: Any) -> Any:
        if self._is_named(cache):
            return NotImplemented
        return caches.reduce_cache(cache)

    def _is_named(self, obj: Any) -> bool:
        """Return whether an object can be found by its name in a module that can be imported."""
        module = obj.__module__
        if "{}.{}".format(module, obj.__qualname__) in self._patches:
            return False
        if module == "__main__" or not self._modules.can_import(module):
            return False
        found: Any = sys.modules[module]
        try:
            for part in obj.__qualname__.split("."):
                found = getattr(found, part)
        except AttributeError:
            return False
        return found is obj

    def _reduce_code(self, code: types.CodeType) -> Any:
        self.filenames.add(code.co_filename)
        try:
            # Version 2: what later ones write depends on reference counts.
            return constructors.make_code, (marshal.dumps(code, 2),)
        except ValueError:  # with constants that no compiler makes
            return _reduce_by_dill(types.CodeType, code)

    def _reduce_traceback(self, trace: types.TracebackType) -> Any:
        self.filenames.update(exceptions.filenames(trace))
        return exceptions.reduce_traceback(trace)


def _is_certain(kind: type) -> bool:
    """Return whether each object of a type can be loaded if it can be saved."""
    mro = get_mro(kind)
    module = get_module(kind)
    if type(module) is str and module.partition(".")[0] in _TRUSTED:
        return BaseException not in mro
    for base in mro[:-1]:
        attributes = get_dict(base)
        for hook in _HOOKS & attributes.keys():
            if hook != "__hash__" or attributes[hook] is not None:
                return False
        if get_module(base) == "builtins":
            return False
    return True


# Functions, and what they consist of


_FUNCTION_ATTRIBUTES = (
    "__qualname__",
    "__module__",
    "__doc__",
    "__defaults__",
    "__kwdefaults__",
    "__annotations__",
    "__type_params__",
    "__dict__",
)


def _reduce_cell(cell: types.CellType) -> Any:
    try:
        contents = (cell.cell_contents,)
    except ValueError:  # it is empty
        return constructors.make_cell, ()
    return constructors.make_cell, (), contents, None, None, constructors.fill_cell


def _reduce_method(method: types.MethodType) -> Any:
    return types.MethodType, (method.__func__, method.__self__)


def _reduce_property(prop: property) -> Any:
    return property, (prop.fget, prop.fset, prop.fdel, prop.__doc__)


def _reduce_wrapped(method: Any) -> Any:
    return type(method), (method.__func__,)


def _reduce_type_variable(variable: Any) -> Any:
    return classes.reduce_type_variable(variable) or NotImplemented


_HANDLERS: dict[type, Handler | None] = {
    types.CellType: _reduce_cell,
    types.MethodType: _reduce_method,
    property: _reduce_property,
    classmethod: _reduce_wrapped,
    staticmethod: _reduce_wrapped,
    classes.Methods: None,
    instances.Early: None,
    **dict.fromkeys(_TYPE_VARIABLES, _reduce_type_variable),
    **library.HANDLERS,
}

_CACHE: type = type(functools.lru_cache(print))

#: Types that say they are in ``builtins`` and are not.
_UNNAMED_TYPES: dict[type, tuple[str, str]] = {
    value: (module.__name__, name)
    for module in (_collections_abc, types)
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == "builtins"
}


# dill


class _CaughtPickler:
    """Takes the place of dill's pickler, and catches the one reduction that is made there."""

    is_dill = True
    _byref = _recurse = _session = _strictio = False
    _fmode = 0
    _main = None

    def __init__(self) -> None:
        self._postproc: dict[int, Any] = {}
        self.reduction: tuple[Any, ...] | None = None

    def save_reduce(
        self,
        func: Any,
        args: Any,
        state: Any = None,
        listitems: Any = None,
        dictitems: Any = None,
        state_setter: Any = None,
        *,
        obj: Any = None,
    ) -> None:
        self.reduction = (func, args, state, listitems, dictitems, state_setter)

    def write(self, data: bytes) -> None:
        if data[:1] != pickle.GLOBAL or data.count(b"\n") != 2:
            raise AttributeError("write")
        self.reduction = (constructors.named, tuple(data[1:-1].decode().split("\n")))


def _reduce_by_dill(kind: type, obj: Any) -> Any:
    handler = _by_dill(kind)
    return NotImplemented if handler is None else handler(obj)


def _by_dill(kind: type, *, of_cells: bool = False) -> Handler | None:
    """Return a handler that saves a type as dill does, if dill knows it.

    Args:
        kind: the type.
        of_cells: only if a cell has told dill how.
    """
    import dill  # late: most variables do not need it

    save = dill.Pickler.dispatch.get(kind)
    module = getattr(save, "__module__", "")
    if save is None or module == "pickle" or (of_cells and module.startswith("dill")):
        return None

    def reduce(obj: Any) -> Any:
        pickler = _CaughtPickler()
        try:
            save(pickler, obj)
        except AttributeError:  # it does more than one reduction
            return NotImplemented
        reduction = pickler.reduction
        if reduction is None:
            return NotImplemented
        while len(reduction) > 2 and reduction[-1] is None:
            reduction = reduction[:-1]
        return reduction

    return reduce
