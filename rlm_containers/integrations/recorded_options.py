"""Options of a sandbox that a framework writes into its own files, and reads from there again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlm_containers.errors import OptionError
from rlm_containers.options import configured_options


def recorded_options(given: Mapping[str, Any], refused: Mapping[str, str]) -> dict[str, Any]:
    """Check the options of sandboxes, and return them as JSON has them.

    Args:
        given: options, as for a sandbox.
        refused: those that cannot be given here, and what to do instead.

    Raises:
        OptionError: an option is refused, unknown or wrong, or JSON cannot express it.
    """
    for name, remedy in refused.items():
        if given.get(name):
            raise OptionError(f"{name} cannot be set here.", remedy=remedy)
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(given)))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"An option cannot be written as JSON: {error}.", remedy="Use strings and numbers."
        ) from None
    configured_options(kept)
    return kept
