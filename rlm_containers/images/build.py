"""From an image and a recipe to an image that is ready: found, loaded or built."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from rlm_containers.errors import ImageBuildError, ImageNotFoundError, OptionError
from rlm_containers.images.cache import DERIVED, LABEL, ORIGIN_LABEL, ImageCache
from rlm_containers.images.failure import build_failure, without_credentials
from rlm_containers.images.index import note_use, store_of
from rlm_containers.images.pip import pip_secrets, warn_of_proxies
from rlm_containers.images.recipe import (
    DockerfileLayer,
    Layer,
    PackageLayer,
    Recipe,
    recipe_of,
)
from rlm_containers.options import SandboxOptions
from runtimes import BuildSpec, ImageRecord, Runtime, get_runtime

logger = logging.getLogger("rlm_containers")

#: Seconds that a build may take: large packages over a slow line, or compiled.
BUILD_TIMEOUT = 3600.0

# Images that this process has found or built, so that only its first sandbox has to ask for them.
_ready: dict[tuple[str, str, str], str] = {}
_ready_lock = threading.Lock()


def derive_image(
    runtime: Runtime,
    image: str,
    recipe: Recipe,
    *,
    cache: ImageCache | None = None,
    container_labels: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    again: bool = False,
) -> str:
    """The name of the image that a recipe makes on top of another, built if need be.

    It is looked for in the engine's store, then among the exported images, and then built. Several
    processes at once build it once.

    Args:
        runtime: the engine.
        image: the image below.
        recipe: what to add.
        cache: the image cache; by default the user's.
        container_labels: labels of a container that the build may need beside its own.
        on_line: called with each line of a pull's or a build's log.
        again: look for it also if this process knows it: it may have been removed since.

    Raises:
        ImageNotFoundError: the image below is nowhere to be had.
        ImageBuildError: the build failed; the message names the package and ends with the log.
        OptionError: the host's pip settings cannot be used in a build.
    """
    cache = cache or ImageCache()
    key = (store_of(runtime), image, recipe.key)
    with _ready_lock:
        known = _ready.get(key)
    if known is not None and not again:
        note_use(runtime, known, cache.index)
        return known
    name = image
    for layer in recipe.layers:
        name = _Build(runtime, cache, name, layer, container_labels or {}, on_line).find()
    with _ready_lock:
        _ready[key] = name
    return name


def warm_image(
    options: SandboxOptions,
    *,
    cache: ImageCache | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Have everything ready for sandboxes with these options: pulled, loaded or built.

    Args:
        options: the sandboxes' options.
        cache: the image cache; by default the user's.
        on_line: called with each line of a pull's or a build's log.

    Returns:
        The name of the image that they will be started from.

    Raises:
        ImageNotFoundError, ImageBuildError, OptionError: as :func:`derive_image`.
        EngineNotFoundError, EngineUnavailableError: there is no engine.
    """
    cache = cache or ImageCache()
    runtime = get_runtime(options.runtime)
    recipe = recipe_of(options)
    if recipe is None:
        cache.require(runtime, options.image, on_line)
        return options.image
    return derive_image(runtime, options.image, recipe, cache=cache, on_line=on_line, again=True)


class _Build:
    """One layer of a recipe, on one engine."""

    def __init__(
        self,
        runtime: Runtime,
        cache: ImageCache,
        image: str,
        layer: Layer,
        container_labels: Mapping[str, str],
        on_line: Callable[[str], None] | None,
    ) -> None:
        self._runtime = runtime
        self._cache = cache
        self._image = image
        self._layer = layer
        self._container_labels = container_labels
        self._on_line = on_line and (lambda line: on_line(without_credentials(line)))

    def find(self) -> str:
        """The built image's name."""
        bases = self._layer.bases(self._image)
        below = [self._cache.require(self._runtime, base, self._on_line) for base in bases]
        digest = self._layer.digest([base.content or base.id for base in below])
        name = f"{DERIVED}:{digest}"
        if self._is_there(name, digest):
            note_use(self._runtime, name, self._cache.index)
            return name
        waiting = f"waiting for another process, which builds {name} just now"
        with self._cache.building(digest, waiting):
            if self._is_there(name, digest):
                return name
            if self._cache.load(self._runtime, name) and self._is_there(name, digest):
                return name
            self._build(name, digest, below)
        return name

    def _is_there(self, name: str, digest: str) -> bool:
        try:
            found = self._runtime.inspect_image(name)
        except ImageNotFoundError:
            return False
        # Anybody can give an image this name.
        return found.labels.get(LABEL) == digest

    def _build(self, name: str, digest: str, below: list[ImageRecord]) -> None:
        what = without_credentials(str(self._layer))
        origin = f"{self._image} + {what}"[:500]
        logger.info("building %s: %s", name, origin)
        warn_of_proxies()
        with self._cache.scratch() as directory:
            labels = {LABEL: digest, ORIGIN_LABEL: origin}
            spec = self._spec(name, directory, below, labels)
            try:
                self._runtime.build(spec, self._on_line)
            except ImageBuildError as error:
                raise build_failure(error, what, self._image) from None
        self._cache.record(
            self._runtime, name, "built", origin, sum(base.size for base in below[:1])
        )

    def _spec(
        self, name: str, directory: Path, below: list[ImageRecord], labels: Mapping[str, str]
    ) -> BuildSpec:
        files = directory / "files"
        files.mkdir()
        if isinstance(self._layer, PackageLayer):
            self._layer.write(files)
            return BuildSpec(
                tag=name,
                base=self._image,
                dockerfile="ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n",
                context=files,
                directory=directory,
                script=self._layer.script(),
                user=below[0].user,
                secrets=pip_secrets(),
                labels=labels,
                container_labels=self._container_labels,
                timeout=BUILD_TIMEOUT,
            )
        assert isinstance(self._layer, DockerfileLayer)
        dockerfile = self._layer.dockerfile
        try:
            secrets = pip_secrets()
        except OptionError as error:
            # It may do without.
            logger.info("the Dockerfile's build has no pip settings: %s", error)
            secrets = {}
        return BuildSpec(
            tag=name,
            base=self._image if dockerfile.on_image else "",
            dockerfile=dockerfile.text,
            context=dockerfile.context or files,
            directory=directory,
            secrets=secrets,
            labels=labels,
            timeout=BUILD_TIMEOUT,
        )
