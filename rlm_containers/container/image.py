"""The image of one sandbox: the one that is named, or one that is built on top of it."""

from __future__ import annotations

from rlm_containers import images
from rlm_containers.guest import wire
from rlm_containers.options import SandboxOptions
from rlm_containers.state import Owner
from runtimes import Runtime


class SandboxImage:
    """The image of one sandbox: the one in its options, or one that is built on top of it.

    Args:
        options: the sandbox's. Those that add to the image are checked as far as possible without
            an engine.

    Attributes:
        name: the image in the options.
        recipe: a hash of what is built on top of it; empty if nothing is.

    Raises:
        OptionError: one of the options that add to the image is wrong.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self.name = options.image
        self._has_volume = options.workspace == "volume"
        self._recipe: images.Recipe | None = None
        if (
            options.packages
            or options.requirements
            or options.system_packages
            or options.dockerfile
        ):
            self._recipe = images.recipe_of(options)
        self.recipe = self._recipe.key if self._recipe else ""

    def get(self, runtime: Runtime, *, missing: bool = False) -> str:
        """Build the image if the options add something to it.

        Args:
            runtime: the engine.
            missing: whether the engine has said that it lacks the image. Then look for it again,
                and pull or build it. Otherwise the engine is asked only about derived
                images that this process has not seen yet.

        Returns:
            The name of the image to start.

        Raises:
            ImageNotFoundError: the image, or its base image, is neither here nor in a registry.
            ImageBuildError: the build failed.
            OptionError: the host's settings for pip cannot be used in a build.
        """
        recipe = self._recipe
        if self._has_volume and (text := runtime.volume_instructions(wire.WORKSPACE)):
            recipe = images.with_instructions(recipe, text)
        if recipe is None:
            if missing:
                images.ImageCache().fetch(runtime, self.name)
            return self.name
        return images.derive_image(
            runtime,
            self.name,
            recipe,
            container_labels=Owner.current().labels(),
            again=missing,
        )
