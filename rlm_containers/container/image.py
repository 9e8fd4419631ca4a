"""The image that a sandbox starts: the one that was named, or one that is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_containers.options import SandboxOptions
from rlm_containers.state import Owner
from runtimes import Runtime

if TYPE_CHECKING:
    from rlm_containers.images import Recipe


class SandboxImage:
    """The image of one sandbox.

    Args:
        options: the sandbox's. They are checked as far as that needs no engine.

    Raises:
        OptionError: of those that say what to add to the image, one is wrong.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self._name = options.image
        self._recipe = _recipe(options)

    def ready(self, runtime: Runtime, *, again: bool = False) -> str:
        """The image to start, made of the one that was named if anything is to be added to it."""
        if self._recipe is None:
            return self._name
        from rlm_containers.images import derive_image  # noqa: PLC0415  # see _recipe

        return derive_image(
            runtime,
            self._name,
            self._recipe,
            container_labels=Owner.current().labels(),
            again=again,
        )

    def fetch(self, runtime: Runtime, image: str) -> None:
        """Get the image, which is not in the engine's store."""
        from rlm_containers.images import ImageCache  # noqa: PLC0415

        if self._recipe is None:
            ImageCache().fetch(runtime, image)
        else:
            self.ready(runtime, again=True)


def _recipe(options: SandboxOptions) -> Recipe | None:
    """What is to be added to the image, which most sandboxes use as it is."""
    if not (
        options.packages or options.requirements or options.system_packages or options.dockerfile
    ):
        return None
    from rlm_containers.images import recipe_of  # noqa: PLC0415

    return recipe_of(options)
