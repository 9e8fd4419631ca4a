"""Leaves nothing behind, whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_rlm.engine import Engine

__all__ = ["tidy"]

#: Where rlms makes its workspaces; else in the working directory.
_THEIR_WORKSPACES = "RLM_DOCKER_WORKSPACE_DIR"

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def tidy(engine: Engine) -> Iterator[Path]:
    """A directory for all that is temporary; afterwards neither it nor a container is left."""
    directory = Path(tempfile.mkdtemp(prefix="rlm-bench-"))
    path = os.environ["PATH"]
    os.environ[_THEIR_WORKSPACES] = str(directory / "rlms")
    try:
        yield directory
    finally:
        # An interrupt may come again, out of impatience; what follows takes a second.
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
        os.environ["PATH"] = path
        del os.environ[_THEIR_WORKSPACES]
        try:
            # rlms does not know a container's name until `run` has returned, and a container whose
            # `run` was interrupted may show a little later.
            found = engine.remove_mounting(directory)
            if sys.exc_info()[0] is not None:
                time.sleep(1)
                found += engine.remove_mounting(directory)
            if found:
                print(f"bench: removed {found} container(s) of rlms", file=sys.stderr)
            if left := engine.ours_left():
                print(f"bench: {left} container(s) of ours left behind", file=sys.stderr)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            print(f"bench: could not remove {directory}", file=sys.stderr)
        for number, handler in handlers.items():
            signal.signal(number, handler)
