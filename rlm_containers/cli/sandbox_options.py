"""The options of a sandbox on the command line, derived from :class:`SandboxOptions`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from rlm_containers.errors import OptionError
from rlm_containers.options import OptionArguments, SandboxOptions, read_option

_META = "rlm_containers.sandbox_options"

# The markup of docstrings, and what replaces it in plain text.
_MARKUP = ((r":\w+:`~?([^`]+)`", r"\1"), (r"``([^`]*)``", r"\1"), (r"`([^`]*)`", r"\1"))

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


class SandboxOption(click.Option):
    """One option of the sandbox, for :func:`given_options`; not an argument of the command."""

    sandbox_option = True


def sandbox_options(
    only: Collection[str] = (), *, without: Collection[str] = ()
) -> Callable[[AnyCommand], AnyCommand]:
    """Return a decorator that adds the options of a sandbox to a command.

    Args:
        only: the names of the options to add; empty for all.
        without: the names of options that the command has no use for.
    """

    def decorate(command: AnyCommand) -> AnyCommand:
        wanted = [name for name in only or _hints() if name not in without]
        for name in reversed([name for name in _hints() if name in wanted]):
            command = click.option(*_spelling(name), **_attributes(name), cls=SandboxOption)(
                command
            )
        return command

    return decorate


def given_options(ctx: click.Context) -> dict[str, Any]:
    """Return the options that were given on the command line, as keyword arguments.

    The others are left out, so that their configured values hold.
    """
    return dict(ctx.meta.get(_META, {}))


@cache
def _hints() -> dict[str, Any]:
    """Map every option to the type that a caller may give, in the order of the fields."""
    hints = {"image": str, **get_type_hints(OptionArguments)}
    names = [field.name for field in dataclasses.fields(SandboxOptions)]
    return {name: hints.get(name, str) for name in names}


def _spelling(name: str) -> tuple[str, str]:
    word = name.replace("_", "-")
    if _is_list(_hints()[name]):
        word = word.removesuffix("s")  # each value is given by itself
    return f"--{word}", name


def _attributes(name: str) -> dict[str, Any]:
    hint = _hints()[name]
    attributes: dict[str, Any] = {
        "default": None,
        "expose_value": False,
        "callback": _collect,
        "help": _help(name),
    }
    choices = _choices(hint)
    if _is_mapping(hint):
        attributes |= {"multiple": True, "metavar": "NAME[=VALUE]"}
        attributes["help"] += " NAME alone takes the value from this environment."
    elif _is_list(hint):
        attributes |= {"multiple": True, "metavar": "TEXT"}
        attributes["help"] += " May be given several times."
    elif choices:
        attributes["type"] = click.Choice(choices)
    else:
        attributes["metavar"] = _metavar(hint)
    if name == "runtime":
        attributes["shell_complete"] = _complete_runtime
    return attributes


def _complete_runtime(ctx: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    from runtimes import runtime_names

    return [name for name in runtime_names() if name.startswith(incomplete)]


def _collect(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    """Check one option, and keep it for :func:`given_options`."""
    if value is None or value == ():
        return
    name = option.name
    assert name is not None
    if _is_mapping(_hints()[name]):
        value = _pairs(value)
    try:
        ctx.meta.setdefault(_META, {})[name] = read_option(name, value)
    except OptionError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=option) from None


def _pairs(words: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` words. ``NAME`` alone keeps a secret off the command line."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            if name not in os.environ:
                raise click.BadParameter(f"there is no variable {name} in this environment")
            value = os.environ[name]
        pairs[name] = value
    return pairs


# Types


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_mapping(hint: Any) -> bool:
    return any(get_origin(kind) is Mapping or kind is Mapping for kind in _origins(hint))


def _is_list(hint: Any) -> bool:
    """Tell whether only lists are allowed, or ``None``."""
    kinds = [kind for kind in _origins(hint) if kind is not type(None)]
    return bool(kinds) and all(
        isinstance(kind, type) and kind is not str and issubclass(kind, Iterable) for kind in kinds
    )


def _origins(hint: Any) -> list[Any]:
    return [get_origin(kind) or kind for kind in _alternatives(hint)]


def _choices(hint: Any) -> list[str]:
    """Return the words that are allowed, or none if other values are allowed, too."""
    words: list[str] = []
    for kind in _alternatives(hint):
        if get_origin(kind) is Literal:
            words += get_args(kind)
        elif kind is not type(None):
            return []
    return words


def _metavar(hint: Any) -> str:
    kinds = _alternatives(hint)
    return "NUMBER" if set(kinds) <= {int, float, type(None)} else "TEXT"


# Help


def _help(name: str) -> str:
    text = _descriptions().get(name, "")
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text)
    first = re.split(r"(?<=[a-z0-9)\"])\. (?=[A-Z])", text)[0].rstrip(".;")
    sentence = first[:1].upper() + first[1:] + "."
    default = SandboxOptions.__dataclass_fields__[name].default
    if isinstance(default, str | int | float):
        sentence += f" [default: {default}]"
    return sentence.replace("None", "none")


@cache
def _descriptions() -> dict[str, str]:
    """Map each attribute to its description in the class's docstring."""
    documentation = inspect.cleandoc(SandboxOptions.__doc__ or "")
    _, _, attributes = documentation.partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n(?:        .*)?)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
