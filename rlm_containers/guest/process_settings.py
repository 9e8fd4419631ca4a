"""Settings of the process and of Python's own libraries that are plain values.

A reader returns ``None`` for a setting that is as Python has it.
"""

from __future__ import annotations

import _thread
import copyreg
import encodings.aliases
import gc
import os
import sys
import types
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any


def library(name: str) -> Any:
    """Return a module of the standard library if it is loaded, and not another of its name."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) or ""
    return module if file.startswith(LIBRARY) else None


def load(name: str) -> Any:
    """Import a module of the standard library, also where another one comes before it."""
    if name not in sys.modules:
        sys.path.insert(0, LIBRARY)
        try:
            __import__(name)
        finally:
            sys.path.remove(LIBRARY)
    return sys.modules[name]


LIBRARY = os.path.dirname(os.__file__)


def _read_umask() -> int:
    mask = os.umask(0o077)  # there is no other way
    os.umask(mask)
    return mask


def _read_stack_size() -> int:
    size = _thread.stack_size()  # which sets it back to 0
    _thread.stack_size(size)
    return size


def _read_tracemalloc() -> Any:
    tracemalloc = library("tracemalloc")
    tracing = tracemalloc is not None and tracemalloc.is_tracing()
    return tracemalloc.get_traceback_limit() if tracing else None


def _read_socket() -> Any:
    socket = library("socket")
    return socket and socket.getdefaulttimeout()


def _read_csv() -> Any:
    csv = library("csv")
    limit = csv and csv.field_size_limit()
    return None if limit == 131072 else limit


def _read_mimetypes() -> Any:
    """Return the types that were added to those of the system."""
    mimetypes = library("mimetypes")
    if mimetypes is None or not mimetypes.inited:
        return None
    if _SYSTEM.get("module") is not mimetypes:
        files = [file for file in mimetypes.knownfiles if os.path.isfile(file)]
        _SYSTEM.update(module=mimetypes, types=mimetypes.MimeTypes(files).types_map)
    found = [
        (kind, suffix, strict)
        for strict in (True, False)
        for suffix, kind in mimetypes._db.types_map[strict].items()
        if _SYSTEM["types"][strict].get(suffix) != kind
    ]
    return found or None


_SYSTEM: dict[str, Any] = {}


def _restore_mimetypes(found: list[tuple[str, str, bool]]) -> None:
    for kind, suffix, strict in found:
        load("mimetypes").add_type(kind, suffix, strict)


def _read_multiprocessing() -> Any:
    context = library("multiprocessing.context")
    chosen = context and context._default_context._actual_context
    return chosen and chosen._name


def _read_logging_names() -> Any:
    logging = library("logging")
    if logging is None:
        return None
    names = {level: name for level, name in logging._levelToName.items() if level % 10}
    captures = logging._warnings_showwarning is not None
    changed = names or captures or not logging.raiseExceptions
    return (names, captures, bool(logging.raiseExceptions)) if changed else None


def _restore_logging_names(state: tuple[dict[int, str], bool, bool]) -> None:
    logging = load("logging")
    names, captures, raises = state
    for level, name in names.items():
        logging.addLevelName(level, name)
    logging.captureWarnings(captures)
    logging.raiseExceptions = raises


def _read_calendar() -> Any:
    calendar = library("calendar")
    first = calendar and int(calendar.firstweekday())
    return first or None


def _read_namespaces() -> Any:
    """Return the prefixes of XML that were added."""
    etree = library("xml.etree.ElementTree")
    known = etree._namespace_map.items() if etree is not None else ()
    return {uri: prefix for uri, prefix in known if _NAMESPACES.get(uri) != prefix} or None


_NAMESPACES = {
    "http://www.w3.org/XML/1998/namespace": "xml",
    "http://www.w3.org/1999/xhtml": "html",
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#": "rdf",
    "http://schemas.xmlsoap.org/wsdl/": "wsdl",
    "http://www.w3.org/2001/XMLSchema": "xs",
    "http://www.w3.org/2001/XMLSchema-instance": "xsi",
    "http://purl.org/dc/elements/1.1/": "dc",
}


def _restore_namespaces(found: dict[str, str]) -> None:
    known = load("xml.etree.ElementTree")._namespace_map
    for uri, prefix in found.items():
        for other in [other for other in known if known[other] == prefix]:
            del known[other]
        known[uri] = prefix


def _read_codec_aliases() -> Any:
    aliases = encodings.aliases.aliases
    if aliases == _ALIASES:
        return None
    return {name: codec for name, codec in aliases.items() if _ALIASES.get(name) != codec}


_ALIASES = dict(encodings.aliases.aliases)


def _read_gettext() -> Any:
    gettext = library("gettext")
    if gettext is None:
        return None
    places = {domain: os.fspath(place) for domain, place in gettext._localedirs.items() if place}
    changed = places or gettext._current_domain != "messages"
    return (gettext._current_domain, places) if changed else None


def _restore_gettext(state: tuple[str, dict[str, str]]) -> None:
    gettext = load("gettext")
    domain, places = state
    gettext.textdomain(domain)
    for name, place in places.items():
        gettext.bindtextdomain(name, place)


def _read_faulthandler() -> Any:
    # It is in no file, so library() does not know it.
    faulthandler = sys.modules.get("faulthandler")
    return (faulthandler is not None and faulthandler.is_enabled()) or None


def _read_tzpath() -> Any:
    zoneinfo = library("zoneinfo")
    if zoneinfo is None:
        return None
    import sysconfig  # which zoneinfo has read

    usual = os.environ.get("PYTHONTZPATH", sysconfig.get_config_var("TZPATH")) or ""
    usual_path = [part for part in usual.split(os.pathsep) if os.path.isabs(part)]
    return None if list(zoneinfo.TZPATH) == usual_path else [*map(str, zoneinfo.TZPATH)]


def _read_extension_codes() -> Any:
    """Return the codes that pickles have in place of names, by module and name."""
    return dict(copyreg._extension_registry) or None  # type: ignore[attr-defined]


def _restore_extension_codes(codes: dict[tuple[str, str], int]) -> None:
    for (module, name), code in codes.items():
        copyreg.add_extension(module, name, code)


def _read_module_aliases() -> Any:
    """Return the second names of modules that no import finds, such as cells give them."""
    for name in sys.modules.keys() - _SEEN:
        module = sys.modules.get(name)
        real: Any = getattr(getattr(module, "__spec__", None), "name", None)
        is_alias = (
            type(module) is types.ModuleType
            and type(real) is str
            and sys.modules.get(real) is module
            # Libraries make others when they are imported: compiled modules have a short name, too.
            and "." not in name
            and name not in (real.rpartition(".")[2], module.__name__)
            and PathFinder.find_spec(name) is None
        )
        if is_alias:
            _SECOND_NAMES[name] = real
        else:
            _SECOND_NAMES.pop(name, None)
        _SEEN.add(name)
    found = {
        name: real
        for name, real in _SECOND_NAMES.items()
        if real in sys.modules and sys.modules.get(name) is sys.modules[real]
    }
    return found or None


#: The names that were looked at, and the aliases among them.
_SEEN = set(sys.modules)
_SECOND_NAMES: dict[str, str] = {}


def _restore_module_aliases(found: dict[str, str]) -> None:
    for name, real in found.items():
        sys.modules.setdefault(name, import_module(real))


def _read_traceback_limit() -> Any:
    limit = getattr(sys, "tracebacklimit", None)
    return limit if type(limit) is int else None


def _read_argv() -> Any:
    argv = sys.argv
    return argv[:] if type(argv) is list and all(type(part) is str for part in argv) else None


def _restore_argv(value: list[str]) -> None:
    sys.argv[:] = value


READERS: dict[str, Callable[[], Any]] = {
    "argv": _read_argv,
    "gc threshold": gc.get_threshold,
    "umask": _read_umask,
    "switch interval": sys.getswitchinterval,
    "traceback limit": _read_traceback_limit,
    "tracemalloc": _read_tracemalloc,
    "socket timeout": _read_socket,
    "csv limit": _read_csv,
    "mimetypes": _read_mimetypes,
    "multiprocessing": _read_multiprocessing,
    "logging names": _read_logging_names,
    "calendar": _read_calendar,
    "XML namespaces": _read_namespaces,
    "codec aliases": _read_codec_aliases,
    "gettext": _read_gettext,
    "faulthandler": _read_faulthandler,
    "tzpath": _read_tzpath,
    "extension codes": _read_extension_codes,
    "module aliases": _read_module_aliases,
    "coroutine origins": sys.get_coroutine_origin_tracking_depth,
    "gc debug": gc.get_debug,
    "stack size": _read_stack_size,
    "dlopen flags": sys.getdlopenflags,
    "priority": lambda: os.getpriority(os.PRIO_PROCESS, 0),
}

RESTORERS: dict[str, Callable[[Any], object]] = {
    "argv": _restore_argv,
    "gc threshold": lambda value: gc.set_threshold(*value),
    "umask": os.umask,
    "switch interval": sys.setswitchinterval,
    "traceback limit": lambda value: setattr(sys, "tracebacklimit", value),
    "tracemalloc": lambda value: load("tracemalloc").start(value),
    "socket timeout": lambda value: load("socket").setdefaulttimeout(value),
    "csv limit": lambda value: load("csv").field_size_limit(value),
    "mimetypes": _restore_mimetypes,
    "multiprocessing": lambda value: load("multiprocessing").set_start_method(value, force=True),
    "logging names": _restore_logging_names,
    "calendar": lambda value: load("calendar").setfirstweekday(value),
    "XML namespaces": _restore_namespaces,
    "codec aliases": encodings.aliases.aliases.update,
    "gettext": _restore_gettext,
    "faulthandler": lambda value: load("faulthandler").enable(),
    "tzpath": lambda value: load("zoneinfo").reset_tzpath(value),
    "extension codes": _restore_extension_codes,
    "module aliases": _restore_module_aliases,
    "coroutine origins": sys.set_coroutine_origin_tracking_depth,
    "gc debug": gc.set_debug,
    "stack size": _thread.stack_size,
    "dlopen flags": sys.setdlopenflags,
    "priority": lambda value: os.setpriority(os.PRIO_PROCESS, 0, value),
}
if hasattr(sys, "set_int_max_str_digits"):
    READERS["int digits"] = sys.get_int_max_str_digits
    RESTORERS["int digits"] = sys.set_int_max_str_digits

#: What a setting is called if it cannot be set again.
NAMES = {
    "argv": "sys.argv",
    "gc threshold": "gc.get_threshold()",
    "umask": "os.umask()",
    "switch interval": "sys.getswitchinterval()",
    "traceback limit": "sys.tracebacklimit",
    "socket timeout": "socket.getdefaulttimeout()",
    "csv limit": "csv.field_size_limit()",
    "multiprocessing": "multiprocessing.get_start_method()",
    "logging names": "logging.addLevelName()",
    "calendar": "calendar.firstweekday()",
    "XML namespaces": "xml.etree.ElementTree.register_namespace()",
    "codec aliases": "encodings.aliases.aliases",
    "gettext": "gettext.textdomain()",
    "faulthandler": "faulthandler.enable()",
    "tzpath": "zoneinfo.TZPATH",
    "extension codes": "copyreg.add_extension()",
    "module aliases": "sys.modules",
    "coroutine origins": "sys.get_coroutine_origin_tracking_depth()",
    "gc debug": "gc.get_debug()",
    "stack size": "threading.stack_size()",
    "dlopen flags": "sys.getdlopenflags()",
    "priority": "os.nice()",
    "int digits": "sys.get_int_max_str_digits()",
}
