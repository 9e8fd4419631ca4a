"""Derived images: found, loaded or built from an image and a recipe, and why a build failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlm_containers.errors import ImageBuildError, ImageNotFoundError, OptionError, host_errors
from rlm_containers.images.cache import DERIVED, LABEL, ORIGIN_LABEL, ImageCache
from rlm_containers.images.index import note_use, store_of
from rlm_containers.images.pip import pip_secrets, warn_of_proxies
from rlm_containers.images.recipe import Layer, PackageLayer, Recipe, recipe_of
from rlm_containers.options import SandboxOptions
from runtimes import BuildSpec, ImageRecord, Runtime, get_runtime
from runtimes.forks import ModuleLock
from runtimes.text import get_logger, without_credentials

logger = get_logger("rlm_containers")

#: Seconds that a build may take. Packages may be large, the network slow, and some are compiled.
BUILD_TIMEOUT = 3600.0

# Images that this process has found or built. Only its first sandbox has to ask the engine for
# them.
_ready: dict[tuple[str, str, str], str] = {}
_ready_lock = ModuleLock()


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
    """Get the image that a recipe makes on top of another, and build it if necessary.

    The image is looked for in the engine's store, then among the exported images. If several
    processes need it at once, one builds it and the others wait.

    Args:
        runtime: the engine.
        image: the image below.
        recipe: what to add.
        cache: the image cache; by default the user's.
        container_labels: further labels for a container that the build may need.
        on_line: called with each line of a pull's or a build's log.
        again: look for the image even if this process has found it before: it may be gone.

    Returns:
        The image's name.

    Raises:
        ImageNotFoundError: the image below is nowhere to be had.
        ImageBuildError: the build failed. The message names the package and ends with the log.
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
        build = _Build(
            runtime=runtime,
            cache=cache,
            image=name,
            layer=layer,
            container_labels=container_labels or {},
            on_line=on_line,
        )
        name = build.run()
    with _ready_lock:
        _ready[key] = name
    return name


def warm_image(
    options: SandboxOptions,
    *,
    cache: ImageCache | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Pull, load or build the image of sandboxes with these options.

    Args:
        options: the sandboxes' options.
        cache: the image cache; by default the user's.
        on_line: called with each line of a pull's or a build's log.

    Returns:
        The name of the image that the sandboxes will start from.

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


@dataclass(frozen=True, kw_only=True)
class _Build:
    """The build of one layer of a recipe.

    Attributes:
        runtime: the engine.
        cache: the image cache.
        image: the image below.
        layer: what to add.
        container_labels: further labels for a container that the build may need.
        on_line: called with each line of a pull's or the build's log.
    """

    runtime: Runtime
    cache: ImageCache
    image: str
    layer: Layer
    container_labels: Mapping[str, str]
    on_line: Callable[[str], None] | None

    def run(self) -> str:
        """Find the image or build it, and return its name."""
        with host_errors(ImageBuildError, f"Nothing could be added to the image {self.image}"):
            return self._run()

    def _run(self) -> str:
        bases = self.layer.bases(self.image)
        below = [self.cache.require(self.runtime, base, self._on_line) for base in bases]
        digest = self.layer.digest([base.content or base.id for base in below])
        name = f"{DERIVED}:{digest}"
        if self._is_there(name, digest):
            note_use(self.runtime, name, self.cache.index)
            return name
        with self.cache.building(digest, f"waiting for another process that builds {name}"):
            if self._is_there(name, digest):
                return name
            if self.cache.load(self.runtime, name) and self._is_there(name, digest):
                return name
            self._build(name, digest, below)
        return name

    def _is_there(self, name: str, digest: str) -> bool:
        try:
            found = self.runtime.inspect_image(name)
        except ImageNotFoundError:
            return False
        # The name proves nothing: anybody can give it to an image.
        return found.labels.get(LABEL) == digest

    def _build(self, name: str, digest: str, below: list[ImageRecord]) -> None:
        what = without_credentials(str(self.layer))
        origin = f"{self.image} + {what}"[:500]
        logger.info("building %s: %s", name, origin)
        warn_of_proxies()
        with self.cache.scratch() as directory:
            labels = {LABEL: digest, ORIGIN_LABEL: origin}
            spec = self._spec(name, directory, below, labels)
            try:
                self.runtime.build(spec, self._on_line)
            except ImageBuildError as error:
                raise build_failure(error, what, self.image) from None
        size_below = below[0].size if below else 0
        self.cache.record(self.runtime, name, "built", origin, size_below)

    def _spec(
        self, name: str, directory: Path, below: list[ImageRecord], labels: Mapping[str, str]
    ) -> BuildSpec:
        files = directory / "files"
        files.mkdir()
        if isinstance(self.layer, PackageLayer):
            self.layer.write(files)
            return BuildSpec(
                tag=name,
                base=self.image,
                dockerfile="ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n",
                context=files,
                directory=directory,
                script=self.layer.script(),
                user=below[0].user,
                secrets=pip_secrets(),
                labels=labels,
                container_labels=self.container_labels,
                timeout=BUILD_TIMEOUT,
            )
        dockerfile = self.layer.dockerfile
        try:
            secrets = pip_secrets()
        except OptionError as error:
            # A Dockerfile need not use pip.
            logger.info("the Dockerfile's build has no pip settings: %s", error)
            secrets = {}
        return BuildSpec(
            tag=name,
            base=self.image if dockerfile.on_image else "",
            dockerfile=dockerfile.text,
            context=dockerfile.context or files,
            directory=directory,
            secrets=secrets,
            labels=labels,
            timeout=BUILD_TIMEOUT,
        )

    @property
    def _on_line(self) -> Callable[[str], None] | None:
        on_line = self.on_line
        return on_line and (lambda line: on_line(without_credentials(line)))


# Why a build failed

#: Lines of the log that an error shows.
_SHOWN = 20

# What pip, apt-get, apk, dnf and zypper say, with the package's name. The first match counts.
_CAUSES: tuple[tuple[str, str], ...] = (
    (r"No matching distribution found for (?P<name>\S+)", "pip finds no {name} that fits"),
    (r"Invalid requirement: (?P<name>.+)", "pip cannot read the requirement {name}"),
    (r"Cannot install (?P<name>.+?) because these", "{name} contradict each other"),
    (r"pyproject\.toml based projects \((?P<name>[^)]+)\)", "{name} does not build"),
    (r"Failed (?:building wheel|to build) (?:for )?(?P<name>[^\s(]+)", "{name} does not build"),
    (r"E: Unable to locate package (?P<name>\S+)", "apt-get knows no {name}"),
    (r"E: Package '(?P<name>[^']+)' has no installation", "apt-get has no {name} to install"),
    (r"E: Version '[^']+' for '(?P<name>[^']+)' was not", "apt-get has no such version of {name}"),
    (r"^\s*(?:[#\d. ]+)?(?P<name>\S+) \(no such package\)", "apk knows no {name}"),
    (r"(?:No match for argument|Unable to find a match): (?P<name>\S+)", "dnf knows no {name}"),
    (r"'(?P<name>[^']+)' not found in package names", "zypper knows no {name}"),
    (r"^(?:[#\d. ]+)?(?:rlm-containers: )?(?P<name>this image has .+)", "{name}"),
    (r"(?P<name>the --mount option requires BuildKit)", "{name}"),
)

# The package that pip was working on, if nothing above names one.
_LAST_STEP = re.compile(
    r"(?:Collecting|Building wheel for|Getting requirements to build wheel for) (\S+)"
)

_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"certificate verify failed|CERTIFICATE_VERIFY_FAILED",
        "Name the certificates that this network needs: PIP_CERT=FILE.",
    ),
    (
        r"name resolution|Could not resolve|NewConnectionError|Network is unreachable|Timeout",
        "Builds need the network, or an image that was exported where there is one: see "
        "docs/images.md.",
    ),
    (r"neither pip nor ensurepip", 'Add system_packages=["python3-pip"], or use another image.'),
    (r"no Python$", "Use an image with Python 3.9 or later."),
    (r"no package manager", "Use an image with apt-get, apk or dnf, or a dockerfile=…."),
    (r"requires BuildKit", "Install docker's buildx plugin, or leave out --mount."),
    (r"No space left on device", "Make room: `rlm-containers images prune`."),
)

# Lines about the builder itself, or about the build's only step.
_NOISE = re.compile(
    r"^DEPRECATED: |^ +(?:BuildKit is currently|environment-variable|Install the buildx|https://docs)"
    r"|\bFILES=/|install\.sh"
)


def build_failure(error: ImageBuildError, what: str, image: str) -> ImageBuildError:
    """Make the error that names the package at fault and shows the end of the log.

    Args:
        error: the runtime's error; its ``stderr`` is the log.
        what: what was to be added, in words.
        image: the image below.
    """
    log = without_credentials(error.stderr)
    lines = [line for line in log.splitlines() if not _NOISE.search(line)]
    remedy = "Correct packages=…, or the other options that add to the image."
    for pattern, text in _REMEDIES:
        if re.search(pattern, log, re.MULTILINE):
            remedy = text
            break
    shown = "\n".join(lines[-_SHOWN:])
    return ImageBuildError(
        f"{without_credentials(what)} could not be added to the image {image}: "
        f"{_cause(lines) or error.what}.",
        remedy=f"{remedy} The build's log ends:\n{shown}",
        exit_code=error.exit_code,
        stderr=log,
    )


def _cause(lines: list[str]) -> str | None:
    for pattern, text in _CAUSES:
        for line in lines:
            if found := re.search(pattern, line):
                return text.format(name=found["name"].strip("'\" ,.;"))
    for line in reversed(lines):
        if found := _LAST_STEP.search(line):
            return f"pip failed at {found[1]}"
    return None
