"""Collects the byte code of modules that would be compiled anew in each container of this image.

Official images have none for the standard library, and none is written: a container cannot change
its image. To compile what a guest imports takes half of its start and a third of its memory.
:mod:`rlm_guest.bundle` uses what is collected here in later containers.
"""

from __future__ import annotations

import marshal
import os
import sys
import zlib
from importlib.machinery import SourceFileLoader
from importlib.util import MAGIC_NUMBER
from typing import Any

from . import wire


def collect() -> bytes:
    """Return the byte code of all modules that were compiled here; nothing if none was.

    Must be called before any code of a cell runs: the host gives it to others.
    """
    entries = {}
    for name, module in list(sys.modules.items()):
        spec: Any = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None)
        if origin is None or not origin.endswith(".py") or spec.name != name:
            continue  # "os.path" is another name of posixpath
        changed = size = 0
        if type(spec.loader) is SourceFileLoader:
            if spec.cached and os.path.exists(spec.cached):
                continue
            found = os.stat(origin)
            changed, size = found.st_mtime_ns, found.st_size
        elif not origin.startswith(wire.BUNDLE) or spec.loader.bundle.magic == MAGIC_NUMBER:
            continue
        code = zlib.compress(marshal.dumps(spec.loader.get_code(name)))
        entries[name] = (origin, changed, size, code)
    return marshal.dumps((MAGIC_NUMBER, entries), 4) if entries else b""
