"""The end of an interpreter: what Python does at its own end, without waiting for threads."""

from __future__ import annotations

import atexit
import gc
import io
from typing import Any


def end_session(namespace: dict[str, Any]) -> None:
    """Run exit functions, drop the variables, and flush the files that are still open.

    Dropping a variable closes its file, in the order that wrappers such as ``gzip`` need.
    """
    try:
        atexit._run_exitfuncs()
    except BaseException:
        pass  # Python has printed it
    namespace.clear()
    gc.collect()
    streams = [found for found in gc.get_objects() if issubclass(type(found), io.IOBase)]
    # Text wrappers first, which write to the others.
    streams.sort(key=lambda stream: not issubclass(type(stream), io.TextIOBase))
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass  # it is closed, or cannot be written
