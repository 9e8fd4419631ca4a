"""Images on a Docker-compatible engine."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtimes.base import ImageRecord, Runtime
from runtimes.build import Builder, build_arguments
from runtimes.command import CommandResult, EngineCommand, last_lines, reading
from runtimes.errors import (
    EngineCommandError,
    EngineTimeoutError,
    ImageBuildError,
    ImageNotFoundError,
)
from runtimes.spec import BuildSpec

#: Seconds that moving an image may take: it can be gigabytes over a slow line or to a slow disk.
TRANSFER_TIMEOUT = 3600.0

#: How docker 20-28 and podman 3-5 say that an image is not in their store.
NO_IMAGE = re.compile(
    r"no such image|unable to find image|image not known|image not found|"
    r"short-name .* did not resolve|no such object|reference does not exist",
    re.IGNORECASE,
)

# The last lines of a log that are kept for an error.
_LOG_LINES = 200


class EngineImages(Runtime):
    """The images of a Docker-compatible command line.

    Args:
        command: how to call it.
    """

    def __init__(self, command: EngineCommand) -> None:
        self.command = command
        # Maps each name that was asked for to the engine's name of the image that was found.
        self._names: dict[str, str] = {}

    @abstractmethod
    def _qualify(self, image: str) -> str:
        """Return the full name to pull and look for; the same if the engine completes names."""

    def _failure(
        self, what: str, result: CommandResult, *, remedy: str = "", container: str | None = None
    ) -> EngineCommandError:
        """Return the error for a command that the engine refused or failed."""
        return EngineCommandError(
            f"{self.name} could not {what}: {last_lines(result.stderr) or 'it said nothing'}",
            remedy=remedy,
            container=container,
            exit_code=result.exit_code,
            stderr=result.stderr,
        )

    def image_exists(self, image: str) -> bool:
        try:
            self.inspect_image(image)
        except ImageNotFoundError:
            return False
        return True

    def inspect_image(self, image: str) -> ImageRecord:
        for name in dict.fromkeys((self._names.get(image, image), image, self._qualify(image))):
            result = self.command.run("image", "inspect", name, "--format={{json .}}", check=False)
            # podman before 4.4 prints a list, whatever the format says.
            if result.exit_code == 0 and (found := result.objects()):
                with reading("image inspect"):
                    record = _image_record(found[0])
                self._names[image] = name
                return record
            if not NO_IMAGE.search(result.stderr):
                raise self._failure(f"inspect the image {image!r}", result)
        raise self._not_here(image)

    def find_images(self, labels: Mapping[str, str]) -> list[ImageRecord]:
        filters = label_filters(labels)
        listed = self.command.run("images", "--quiet", "--no-trunc", *filters).stdout
        ids = list(dict.fromkeys(listed.split()))
        if not ids:
            return []
        # It fails if one of them is gone by now, and still prints the others.
        found = self.command.run("image", "inspect", *ids, check=False)
        with reading("image inspect"):
            return [_image_record(raw) for raw in found.objects()]

    def pull(self, image: str, on_line: Callable[[str], None] | None = None) -> None:
        name = self._qualify(image)
        log = _Log(on_line)
        exit_code = self.command.follow("pull", name, on_line=log, timeout=TRANSFER_TIMEOUT)
        if exit_code != 0:
            raise ImageNotFoundError(
                f"The image {image!r} is not in the store of {self.name} "
                f"and could not be pulled: {last_lines(str(log))}",
                remedy="Check its name and the network, or name an image that is there: "
                f"`{self.command} images` lists them.",
                exit_code=exit_code,
                stderr=str(log),
            )
        self._names[image] = name

    def remove_image(self, image: str) -> None:
        name = self._names.pop(image, image)
        result = self.command.run("rmi", name, check=False)
        if result.exit_code != 0 and not NO_IMAGE.search(result.stderr):
            raise self._failure(
                f"remove the image {image!r}",
                result,
                remedy="Remove the containers and images that need it first.",
            )

    def save_image(self, image: str, path: Path) -> None:
        self.inspect_image(image)
        name = self._names.get(image, image)
        arguments = ("save", *self._save_args, f"--output={path}", name)
        try:
            self._transfer(*arguments)
        except EngineCommandError as error:
            # Podman reads its store in steps, and another process may change that between them.
            if not NO_IMAGE.search(error.stderr) or not self.image_exists(image):
                raise
            path.unlink(missing_ok=True)
            self._transfer(*arguments)

    #: Arguments of ``save`` for a file that every ``docker load`` reads.
    _save_args: tuple[str, ...] = ()

    def load_image(self, path: Path) -> list[str]:
        said = self._transfer("load", f"--input={path}")
        # Docker has a line for each name, podman before 4 all names in one.
        lines = re.findall(r"^Loaded image(?:\(s\)| ID)?: *(.+)$", said, re.MULTILINE)
        return [name.strip() for line in lines for name in line.split(",") if name.strip()]

    def _transfer(self, *args: str) -> str:
        result = self.command.run(*args, timeout=TRANSFER_TIMEOUT, check=False)
        if result.exit_code != 0:
            raise self._failure(
                f"{args[0]} the image",
                result,
                remedy="Check that the disk has space and that the engine may write there.",
            )
        return result.stdout

    # Building

    def _build(
        self, spec: BuildSpec, on_line: Callable[[str], None] | None, builder: Builder
    ) -> None:
        log = _Log(on_line)
        try:
            exit_code = self.command.follow(
                *build_arguments(spec, builder, self._names.get(spec.base, spec.base)),
                on_line=log,
                environment=builder.environment,
                directory=spec.directory,
                timeout=spec.timeout,
            )
        except EngineTimeoutError as error:
            raise self._not_built(spec, error.what, None, str(log)) from None
        if exit_code != 0:
            raise self._not_built(spec, last_lines(str(log), 1), exit_code, str(log))

    def _not_built(
        self, spec: BuildSpec, why: str, exit_code: int | None, log: str
    ) -> ImageBuildError:
        return ImageBuildError(
            f"{self.name} could not build the image {spec.tag}: {why or 'it said nothing'}",
            exit_code=exit_code,
            stderr=log,
        )

    def _not_here(self, image: str) -> ImageNotFoundError:
        return ImageNotFoundError(
            f"The image {image!r} is not in the store of {self.name}.",
            remedy=f"Pull or build it: `{self.command} pull {self._qualify(image)}`.",
        )


class _Log:
    """Keeps the last lines of a command's output, and passes every line on."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._on_line = on_line

    def __call__(self, line: str) -> None:
        self._lines.append(line)
        if self._on_line is not None:
            self._on_line(line)

    def __str__(self) -> str:
        return "\n".join(self._lines)


def label_filters(labels: Mapping[str, str]) -> list[str]:
    """Return the arguments that list only what carries all of the labels; "" is any value."""
    return [
        f"--filter=label={key}" + (f"={value}" if value else "") for key, value in labels.items()
    ]


def read_labels(raw: Any) -> dict[str, str]:
    """Return the labels that an engine names; ``None`` stands for none."""
    return {str(name): str(value) for name, value in (raw or {}).items()}


def _image_record(raw: Mapping[str, Any]) -> ImageRecord:
    config = raw.get("Config") or {}
    return ImageRecord(
        id=str(raw.get("Id", "")),
        tags=tuple(map(str, raw.get("RepoTags") or ())),
        size=int(raw.get("Size") or 0),
        architecture=str(raw.get("Architecture", "")),
        labels=read_labels(config.get("Labels")),
        user=str(config.get("User") or ""),
        content=_content(raw, config),
        workdir=str(config.get("WorkingDir") or ""),
    )


def _content(raw: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Digest what makes an image the same on every engine.

    Ids differ: each engine writes an image's configuration in its own way, and Docker with
    containerd's store names the manifest. The digests of the uncompressed layers do not differ.
    """
    layers = (raw.get("RootFS") or {}).get("Layers")
    if not layers:
        return ""
    parts = [raw.get("Os"), raw.get("Architecture"), raw.get("Variant") or "", layers]
    parts += [config.get(key) or [] for key in ("Env", "Entrypoint", "Cmd", "Shell")]
    parts += [config.get(key) or "" for key in ("User", "WorkingDir")]
    return "sha256:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()
