"""An image as one file that every engine reads: an OCI layout, with what older dockers look for.

``docker save`` before 25 and ``podman save`` write Docker's own form, which no OCI tool reads; an
OCI archive of podman's is unknown to ``docker load`` before 25. What is written here is both, as
Docker has it from 25 on: the blobs of an OCI layout, found by ``index.json`` or by
``manifest.json``. The same image gives the same bytes, and every blob is named by its digest, so
that a damaged file is found before an engine takes it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from rlm_containers.errors import ImageArchiveError

#: What a JSON document in an archive may measure: they are a few kilobytes.
_LARGEST_DOCUMENT = 8 * 1024**2

_CHUNK = 1024**2

_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, kw_only=True)
class ImageArchive:
    """A file with an image in it.

    Attributes:
        path: the file.
        names: the image's names; an engine that loads it takes them over.
        labels: the image's labels.
        architecture: for instance ``"amd64"``.
        size: the file's bytes.
    """

    path: Path
    names: tuple[str, ...]
    labels: dict[str, str]
    architecture: str
    size: int


def pack_archive(saved: Path, target: Path) -> None:
    """Make an archive of what an engine has saved.

    Args:
        saved: what ``docker save`` or ``podman save --format=docker-archive`` wrote, of one image.
        target: the file to make or replace, at once and as a whole.

    Raises:
        ImageArchiveError: ``saved`` is not what it should be.
        OSError: ``target`` cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with (
            _opened(saved) as source,
            tarfile.open(temporary, "x", format=tarfile.GNU_FORMAT) as new,
        ):
            entry = _entry(source, saved)
            _pack(source, entry, new)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_archive(path: Path, *, verify: bool = False) -> ImageArchive:
    """What is in an archive: one of ours, or what ``docker save`` or ``podman save`` wrote.

    Args:
        path: the file.
        verify: read all of it, and compare the blobs that are named by their digest.

    Raises:
        ImageArchiveError: it is not an archive, or damaged.
    """
    with _opened(path) as source:
        entry = _entry(source, path)
        config = _document(source, entry["Config"], path)
        if verify:
            _verify(source, path)
    labels = (config.get("config") or {}).get("Labels") or {}
    return ImageArchive(
        path=path,
        names=tuple(str(name) for name in entry.get("RepoTags") or ()),
        labels={str(key): str(value) for key, value in labels.items()},
        architecture=str(config.get("architecture", "")),
        size=path.stat().st_size,
    )


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except (tarfile.TarError, EOFError) as error:
        _damaged(path, str(error))
    except OSError as error:
        raise ImageArchiveError(
            f"The image archive {path} cannot be read: {error.strerror}."
        ) from error


def _entry(source: tarfile.TarFile, path: Path) -> dict[str, Any]:
    """What ``manifest.json`` says of the one image."""
    images = _document(source, "manifest.json", path)
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        _damaged(path, "it does not hold exactly one image")
    entry: dict[str, Any] = images[0]
    layers = entry.get("Layers")
    if not isinstance(layers, list) or not all(
        isinstance(name, str) for name in (entry.get("Config"), *layers)
    ):
        _damaged(path, "its manifest.json is not one")
    return entry


def _document(source: tarfile.TarFile, name: str, path: Path) -> Any:
    with _member(source, name, path) as file:
        content = file.read(_LARGEST_DOCUMENT + 1)
    try:
        if len(content) > _LARGEST_DOCUMENT:
            raise ValueError("too large")
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"{name} is not JSON ({error})")


def _member(source: tarfile.TarFile, name: str, path: Path) -> IO[bytes]:
    try:
        # Follows a link to another member: docker saves a layer that it has already that way.
        file = source.extractfile(name)
    except (KeyError, tarfile.TarError, OSError, EOFError, RecursionError) as error:
        _damaged(path, f"{name} is missing ({error})")
    if file is None:
        _damaged(path, f"{name} is not a file")
    return file


def _pack(source: tarfile.TarFile, entry: dict[str, Any], new: tarfile.TarFile) -> None:
    saved = Path(str(source.name))
    written: set[str] = set()

    def blob(stream: IO[bytes], media_type: str) -> dict[str, Any]:
        """Write a blob, and describe it. It is read twice: its name is its digest."""
        digest, size = hashlib.sha256(), 0
        compressed = b""
        for chunk in _chunks(stream, saved):
            compressed = compressed or chunk[:2]
            digest.update(chunk)
            size += len(chunk)
        name = f"blobs/sha256/{digest.hexdigest()}"
        if name not in written:
            written.add(name)
            stream.seek(0)
            _add(new, name, stream, size)
        if media_type == _LAYER and compressed == b"\x1f\x8b":
            media_type += "+gzip"
        return {"mediaType": media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}

    def document(value: object, media_type: str) -> dict[str, Any]:
        return blob(io.BytesIO(json.dumps(value).encode()), media_type)

    layers = []
    for name in entry["Layers"]:
        with _member(source, name, saved) as stream:
            layers.append(blob(stream, _LAYER))
    with _member(source, entry["Config"], saved) as stream:
        config = blob(stream, _CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
    described = document(manifest, _MANIFEST)
    names = sorted(str(name) for name in entry.get("RepoTags") or ())
    # containerd and Docker read the first annotation, podman the second.
    named = [
        {
            **described,
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name,
            },
        }
        for name in names
    ]
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": named or [described]}
    older = {
        "Config": _path(config),
        "RepoTags": names,
        "Layers": [_path(layer) for layer in layers],
    }
    for name, value in (
        ("index.json", index),
        ("manifest.json", [older]),
        ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
    ):
        content = json.dumps(value).encode()
        _add(new, name, io.BytesIO(content), len(content))


def _path(blob: dict[str, Any]) -> str:
    return "blobs/" + str(blob["digest"]).replace(":", "/")


def _add(new: tarfile.TarFile, name: str, stream: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    new.addfile(member, stream)


def _verify(source: tarfile.TarFile, path: Path) -> None:
    for member in source:
        folder, _, name = member.name.rpartition("/")
        if not member.isfile() or folder != "blobs/sha256":
            continue
        digest = hashlib.sha256()
        with _member(source, member.name, path) as stream:
            for chunk in _chunks(stream, path):
                digest.update(chunk)
        if digest.hexdigest() != name:
            _damaged(path, f"the blob {name[:12]} is not what it should be")


def _chunks(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        while chunk := stream.read(_CHUNK):
            yield chunk
    except (tarfile.TarError, EOFError) as error:
        _damaged(path, str(error))


def _damaged(path: Path, why: str) -> NoReturn:
    raise ImageArchiveError(
        f"{path} is not an image archive, or damaged: {why}.",
        remedy="Export the image again. What `docker save` and `podman save` write will do, too.",
    )
