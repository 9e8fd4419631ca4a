"""The engines that a command is about: those that were named, or all that answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from rlm_containers.errors import ContainersError
from runtimes import Runtime, get_runtime
from runtimes.detect import runtime_names

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


def runtimes_option(command: AnyCommand) -> AnyCommand:
    """An option that names engines, as ``names``."""
    return click.option(
        "--runtime", "names", multiple=True, metavar="NAME", help="Only this engine; repeatable."
    )(command)


def answering(names: tuple[str, ...]) -> dict[str, Runtime]:
    """The engines by their names.

    Args:
        names: those to use, every one of which must answer; empty for all that do.

    Raises:
        EngineNotFoundError, EngineUnavailableError: one that was named does not answer, or none
            does at all.
    """
    if names:
        return {name: get_runtime(name) for name in names}
    found = {}
    for name in runtime_names():
        try:
            found[name] = get_runtime(name)
        except ContainersError:
            continue
    if not found:
        get_runtime()  # says what is to be done where none answers
    return found
