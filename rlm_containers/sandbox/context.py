"""How a context travels: as a file that the guest reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from rlm_containers.errors import ContextError

#: What a context may be.
Context = str | dict[str, Any] | list[Any]

_CHUNK = 4 * 1024 * 1024


def encode_context(name: str, value: Context) -> tuple[Literal["text", "json"], Iterable[bytes]]:
    """A context as the contents of a file.

    Args:
        name: the variable it is for, to be named in errors.
        value: the context. Lone surrogates in a string are kept; a dict's keys become strings.

    Returns:
        What kind of file it is, and its bytes in pieces.

    Raises:
        ContextError: it is neither text nor JSON.
    """
    if isinstance(value, str):
        return "text", _encode_text(value)
    if not isinstance(value, (dict, list)):
        raise ContextError(
            f"{name} must be a string, a dict or a list, not {type(value).__name__}.",
            remedy="Convert it first, for instance with str().",
        )
    try:
        return "json", (json.dumps(value).encode("ascii"),)
    except (TypeError, ValueError, RecursionError) as error:
        raise ContextError(
            f"{name} cannot be expressed as JSON: {error}",
            remedy="Only dicts, lists, strings, numbers, booleans and None can be sent.",
        ) from error


def _encode_text(text: str) -> Iterable[bytes]:
    # In pieces, so that a context of hundreds of megabytes is not in memory twice.
    for start in range(0, len(text), _CHUNK):
        yield text[start : start + _CHUNK].encode("utf-8", "surrogatepass")
