"""Gives processes that multiprocessing spawns what the cells have defined.

A forked child has everything. A child of the start methods ``spawn`` and ``forkserver`` is a new
interpreter. It unpickles the function to call, ``__main__.work`` say, after it has run its parent's
main program again. The cells' ``__main__`` is no program, so the child would look for the function
in vain, and a pool of such children would wait for ever. So a child gets a program that loads the
functions, classes, modules and small values of the cells, from a state file of its own.
"""

from __future__ import annotations

import atexit
import marshal
import os
import sys
import types
from typing import Any, NoReturn

from .imports import change_once_imported
from .interrupts import Interrupts

# A spawned child is a bare interpreter, which lacks the modules that this one has in memory.
_PROGRAM = """\
import marshal, zlib
with open({directory!r} + "/modules", "rb") as file:
    root, magic, files = marshal.load(file)
scope = {{"__name__": "rlm_guest.bundle"}}
exec(zlib.decompress(files["guest/rlm_guest/bundle.py"][0]), scope)
scope["Bundle"](root, magic, files).install()
del file, root, magic, files, scope
from rlm_guest.spawning import load_session
load_session({directory!r}, globals())
"""

_directory = ""

#: The most writes for one variable, of 64 KiB each.
_WRITES = 16
#: The most characters or bytes of a string.
_STRING = 64 * 1024


def watch() -> None:
    """Prepare all children that multiprocessing will spawn."""
    change_once_imported({"multiprocessing.spawn": _prepare_children})


def _prepare_children(spawn: Any) -> None:
    original = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        main = sys.modules["__main__"].__dict__
        if main.get("__spec__") is None and "__file__" not in main:  # else it is a program
            data["init_main_from_path"] = _save_session(main)
        return data

    spawn.get_preparation_data = get_preparation_data


def _save_session(main: dict[str, Any]) -> str:
    """Write a child's program and the state file that it loads. Return the program's path."""
    import tempfile  # late: few cells spawn processes, and it takes half a megabyte

    from .state.checkpoint import Checkpoint

    directory = tempfile.mkdtemp(dir=_top())
    variables = [
        (name, value)
        for name, value in list(main.items())
        if type(name) is str and not name.startswith("__")
        if type(value) not in (str, bytes, bytearray) or len(value) <= _STRING
    ]
    Checkpoint(directory, proves=False).save(variables, _SizeLimit())
    program = os.path.join(directory, "main.py")
    with open(program, "x", encoding="utf-8") as file:
        file.write(_PROGRAM.format(directory=directory))
    os.link(_modules(), os.path.join(directory, "modules"))
    return program


def _modules() -> str:
    """Return the path of a file with the modules of the bundle, for all children."""
    path = os.path.join(_top(), "modules")
    if not os.path.exists(path):
        bundle = _loader().bundle
        with open(path, "xb") as file:
            marshal.dump((bundle.root, bundle.magic, bundle.files), file)
    return path


def _loader() -> Any:
    return globals()["__loader__"]


def _top() -> str:
    """Return the directory for those of all children, which this process removes at its end."""
    global _directory
    if not _directory:
        import shutil
        import tempfile

        _directory = tempfile.mkdtemp(prefix="spawned-")
        atexit.register(shutil.rmtree, _directory, ignore_errors=True)
    return _directory


class _SizeLimit(Interrupts):
    """Ends the saving of a variable that is large."""

    _writes = 0

    def __enter__(self) -> Interrupts:
        self._writes = 0
        return super().__enter__()

    def advance(self) -> None:
        self._writes += 1
        if self.allowed and self._writes > _WRITES:
            raise ValueError("it is too large")


def load_session(directory: str, namespace: dict[str, Any]) -> None:
    """In a child, load what its parent has saved, and remove that.

    Args:
        directory: where it is.
        namespace: the globals of the program. They become the child's ``__main__``.
    """
    import shutil

    from .state.checkpoint import Checkpoint

    global _directory
    _directory = os.path.dirname(directory)
    # Functions find their globals in the __main__ of the time when they are loaded.
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    report = Checkpoint(directory).load(main.__dict__)
    reasons = {name: reason for name, _, reason in report["lost"]}

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def unknown(*args: Any, **kwargs: Any) -> NoReturn:
            raise NameError(
                "{!r} is not known in this process: {}. Define it before the process is started, "
                "in a module in /workspace, or use the start method 'fork'.".format(
                    name, reasons.get(name, "no cell had defined it when the process was started")
                )
            )

        return unknown

    namespace.update(main.__dict__)
    namespace["__getattr__"] = missing
    del namespace["__file__"]
    _prepare_children(sys.modules["multiprocessing.spawn"])  # for its own children
    shutil.rmtree(directory, ignore_errors=True)
