"""Closes the sandboxes that nobody has closed: at the end of this process, or once collected."""

from __future__ import annotations

import _thread
import atexit
import warnings
import weakref

from rlm_containers.interpreter import start_thread
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.sandbox.turn import Turn
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: Those that are open: what ends them holds no reference to the sandbox itself.
_open: set[Turn] = set()


def note_open(box: object, turn: Turn, life: Lifecycle) -> None:
    """Note that a sandbox is about to start.

    Args:
        box: the sandbox.
        turn: closes it.
        life: its lifecycle.
    """
    _open.add(turn)
    weakref.finalize(box, _collect, turn, life).atexit = False


def note_closed(turn: Turn) -> None:
    """Note that somebody closes a sandbox."""
    _open.discard(turn)


@atexit.register
def _close_all() -> None:
    for turn in list(_open):
        _close(turn)


def _collect(turn: Turn, life: Lifecycle) -> None:
    """Close a sandbox that the garbage collector has found, which nobody has closed.

    The collector runs in any thread at any moment, also in one that holds locks. So close it in
    another thread, which is started without the locks of :mod:`threading`.
    """
    if turn not in _open or life.is_of_parent:
        return
    _thread.start_new_thread(start_thread, (_close_forgotten, "rlm-collect", turn))
    warnings.warn(
        f"The sandbox {life.name} was not closed. Use it in a `with` block, or call close().",
        ResourceWarning,
        stacklevel=2,
    )


def _close_forgotten(turn: Turn) -> None:
    try:
        _close(turn)
    finally:
        _open.discard(turn)


def _close(turn: Turn) -> None:
    try:
        turn.close()
    except Exception as error:
        logger.warning("%s", error)
