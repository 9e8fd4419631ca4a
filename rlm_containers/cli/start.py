"""A sandbox for a command, with a word on what takes its time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlm_containers import Sandbox
from rlm_containers.cli.messages import activity
from rlm_containers.cli.progress import engine_progress
from rlm_containers.cli.terminal import console
from rlm_containers.options import configured_options
from rlm_containers.sandbox import Context


def start_sandbox(options: Mapping[str, Any], context: Context | None) -> Sandbox:
    """Start a sandbox, whose variable ``context`` is that, if it is not ``None``.

    Raises:
        ContainersError: it could not be started; nothing is left of it.
    """
    prepare_image(options)
    with activity("starting a container"):
        box = Sandbox(**options).start()
    if context is not None:
        try:
            with activity("sending the context"):
                box.load("context", context)
        except BaseException:
            box.close()
            raise
    return box


def prepare_image(options: Mapping[str, Any]) -> None:
    """Pull or build the image with a bar to look at, where there is someone to look.

    Without one the sandbox does the same by itself, and asks the engine one question less.
    """
    if not console(stderr=True).is_terminal:
        return
    from rlm_containers.images import warm_image

    checked = configured_options(options)
    with engine_progress(f"preparing {checked.image}") as on_line:
        warm_image(checked, on_line=on_line)
