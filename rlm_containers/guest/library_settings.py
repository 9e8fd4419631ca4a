"""Settings of libraries that are not Python's own: how to read and to set them.

A reader returns what was changed, or ``None``. It imports nothing. What is not plain data is named.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any


def note_lists(matplotlib: Any) -> None:
    """Note the lists in the parameters of matplotlib, which cells may change where they are."""
    parameters = dict.items(matplotlib.rcParams)
    _LISTS.update((key, value[:]) for key, value in parameters if type(value) is list)


_LISTS: dict[str, list[Any]] = {}


def _changed_parameters() -> dict[str, Any]:
    """Return the parameters of matplotlib that differ from those in its file."""
    matplotlib: Any = sys.modules.get("matplotlib")
    if not hasattr(matplotlib, "rcParams") or not hasattr(matplotlib, "rcParamsOrig"):
        return {}
    # As dictionaries: their own methods choose a backend, and warn of what is deprecated.
    original = matplotlib.rcParamsOrig
    changed = {}
    for key, value in dict.items(matplotlib.rcParams):
        first = _LISTS[key] if key in _LISTS else dict.get(original, key)
        if key in _CHOSEN or not _differs(value, first):
            continue
        module = type(value).__module__
        if module == "cycler":
            changed[key] = value.by_key()
        else:
            changed[key] = value.value if module == "matplotlib._enums" else value
    return changed


#: What the guest chooses, or matplotlib itself.
_CHOSEN = ("backend", "backend_fallback")


def _restore_parameters(changed: dict[str, Any]) -> None:
    parameters = import_module("matplotlib").rcParams
    if "axes.prop_cycle" in changed:
        cycles = changed.pop("axes.prop_cycle")
        changed["axes.prop_cycle"] = import_module("cycler").cycler(**cycles)
    _set_each(parameters.__setitem__, changed)


def _changed_options() -> dict[str, Any]:
    """Return the options of pandas that differ from their defaults."""
    config: Any = sys.modules.get("pandas._config.config")
    registered = getattr(config, "_registered_options", None)
    # Not by get_option(), which warns of what is deprecated.
    options = getattr(config, "_global_config", None)
    if registered is None or options is None:
        return {}
    return {
        key: value
        for key, value in _flatten(options, "")
        if key in registered and _differs(value, registered[key].defval)
    }


def _flatten(options: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if type(value) is dict:
            yield from _flatten(value, prefix + name + ".")
        else:
            yield prefix + name, value


def _restore_options(changed: dict[str, Any]) -> None:
    _set_each(import_module("pandas").set_option, changed)


def _changed_numpy() -> dict[str, Any]:
    """Return how numpy prints, and what it does about errors, where that was changed."""
    numpy: Any = sys.modules.get("numpy")
    if not hasattr(numpy, "get_printoptions") or not hasattr(numpy, "geterr"):
        return {}
    found = {
        **{"print option " + key: value for key, value in numpy.get_printoptions().items()},
        **{"error " + key: value for key, value in numpy.geterr().items()},
        "error call": numpy.geterrcall(),
        "buffer size": numpy.getbufsize(),
    }
    return {key: value for key, value in found.items() if _differs(value, _NUMPY.get(key))}


_NUMPY = {
    "print option edgeitems": 3,
    "print option threshold": 1000,
    "print option floatmode": "maxprec",
    "print option precision": 8,
    "print option suppress": False,
    "print option linewidth": 75,
    "print option nanstr": "nan",
    "print option infstr": "inf",
    "print option sign": "-",
    "print option legacy": False,
    "error divide": "warn",
    "error over": "warn",
    "error under": "ignore",
    "error invalid": "warn",
    "buffer size": 8192,
}


def _restore_numpy(changed: dict[str, Any]) -> None:
    _set_each(_set_numpy, changed)


def _set_numpy(key: str, value: Any) -> None:
    numpy = import_module("numpy")
    name = key.rpartition(" ")[2]
    if key == "buffer size":
        numpy.setbufsize(value)
    elif key.startswith("error"):
        numpy.seterr(**{name: value})
    else:
        numpy.set_printoptions(**{name: value})


def _changed_scikit() -> dict[str, Any]:
    config: Any = sys.modules.get("sklearn._config")
    if not hasattr(config, "get_config") or not hasattr(config, "_global_config"):
        return {}
    first = config._global_config
    found = config.get_config()
    return {key: value for key, value in found.items() if _differs(value, first.get(key))}


def _restore_scikit(changed: dict[str, Any]) -> None:
    import_module("sklearn").set_config(**changed)


def _changed_polars() -> dict[str, Any]:
    """Return what polars keeps beside the environment, where that was changed."""
    # Not by Config.state(), which reads the environment as well.
    getters = getattr(sys.modules.get("polars.config"), "_POLARS_CFG_DIRECT_VARS", {})
    found = {key: getters[key]() for key in _POLARS if key in getters}
    return {key: value for key, value in found.items() if value != _POLARS[key]}


_POLARS = {
    "set_fmt_float": "mixed",
    "set_float_precision": None,
    "set_thousands_separator": "",
    "set_decimal_separator": ".",
    "set_trim_decimal_zeros": False,
}


def _restore_polars(changed: dict[str, Any]) -> None:
    config = import_module("polars").Config
    _set_each(lambda key, value: getattr(config, key)(value), changed)


def _changed_torch() -> dict[str, Any]:
    """Return what is set in torch, and the state of its generator if cells have seeded it."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "get_rng_state") or not hasattr(torch, "initial_seed"):
        return {}
    found = {
        "default_dtype": str(torch.get_default_dtype()),
        "grad_enabled": torch.is_grad_enabled(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "default_device": str(getattr(torch, "get_default_device", lambda: "cpu")()),
    }
    changed = {key: value for key, value in found.items() if value != _TORCH[key]}
    # Unless a cell chooses the seed it is of 64 bits, and random in some versions.
    if 0 <= torch.initial_seed() < 2**32:
        changed["rng_state"] = bytes(torch.get_rng_state().tolist())
    options = vars(torch._tensor_str.PRINT_OPTS)
    printing = {key: value for key, value in options.items() if value != _TORCH_FORMS.get(key)}
    if printing:
        changed["printoptions"] = printing
    return changed


_TORCH = {
    "default_dtype": "torch.float32",
    "grad_enabled": True,
    "deterministic_algorithms": False,
    "float32_matmul_precision": "highest",
    "default_device": "cpu",
}
_TORCH_FORMS = {
    "precision": 4,
    "threshold": 1000,
    "edgeitems": 3,
    "linewidth": 80,
    "sci_mode": None,
}


def _restore_torch(changed: dict[str, Any]) -> None:
    _set_each(_set_torch, changed)


def _set_torch(key: str, value: Any) -> None:
    torch = import_module("torch")
    if key == "deterministic_algorithms":
        torch.use_deterministic_algorithms(value)
    elif key == "printoptions":
        torch.set_printoptions(**value)
    elif key == "default_dtype":
        torch.set_default_dtype(getattr(torch, value.partition(".")[2]))
    elif key == "rng_state":
        state = torch.tensor(list(value), dtype=torch.uint8, device="cpu")
        torch.default_generator.set_state(state)
    else:
        getattr(torch, "set_" + key)(value)


def unsaved() -> Iterator[str]:
    """Yield the names of settings that were not plain data when they were read."""
    for names in _LEFT_OUT.values():
        yield from names


_LEFT_OUT: dict[str, list[str]] = {}


def _set_each(change: Callable[[str, Any], object], values: Mapping[str, Any]) -> None:
    """Set each value. Raise the last error afterwards: another version may not have them all."""
    failure = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, value in values.items():
            try:
                change(key, value)
            except Exception as error:
                failure = error
    if failure is not None:
        raise failure


def _differs(value: Any, first: Any) -> bool:
    """Return whether a value is not the first one. Compare no object of a cell."""
    if value is first:
        return False
    known = _is_plain(value) or type(value) is type(first)
    return not known or bool(value != first)


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in (list, tuple):
        return all(map(_is_plain, value))
    if kind is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if kind is types.BuiltinMethodType:  # "{:.2f}".format
        return type(value.__self__) is str
    return kind in (type(None), bool, int, float, complex, str, bytes)


#: What reads each, and what is said of a value of it that is not plain.
_CHANGED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "matplotlib": (_changed_parameters, "matplotlib.rcParams[{!r}]"),
    "pandas": (_changed_options, "pandas option {!r}"),
    "numpy forms": (_changed_numpy, "numpy {}"),
    "scikit-learn": (_changed_scikit, "sklearn.set_config({})"),
    "polars": (_changed_polars, "polars.Config.{}"),
    "torch": (_changed_torch, "torch.set_{}()"),
}


def _reader(name: str) -> Callable[[], dict[str, Any] | None]:
    changed, form = _CHANGED[name]

    def read() -> dict[str, Any] | None:
        _LEFT_OUT.pop(name, None)
        found = changed()
        if not found:
            return None
        plain = {key: value for key, value in found.items() if _is_plain(value)}
        _LEFT_OUT[name] = [form.format(key) for key in found if key not in plain]
        return plain or None

    return read


READERS: dict[str, Callable[[], Any]] = {name: _reader(name) for name in _CHANGED}

RESTORERS: dict[str, Callable[[Any], object]] = {
    "matplotlib": _restore_parameters,
    "pandas": _restore_options,
    "numpy forms": _restore_numpy,
    "scikit-learn": _restore_scikit,
    "polars": _restore_polars,
    "torch": _restore_torch,
}

#: What a setting is called if it cannot be set again.
NAMES = {
    "matplotlib": "matplotlib.rcParams",
    "pandas": "pandas.options",
    "numpy forms": "numpy.get_printoptions()",
    "scikit-learn": "sklearn.get_config()",
    "polars": "polars.Config",
    "torch": "settings of torch",
}
