"""Image archives: an image as one file that every engine and every OCI tool can read.

``docker save`` before version 25 and ``podman save`` write Docker's own format, which OCI tools do
not read. ``docker load`` before 25 does not read OCI archives. The archives here are both, like
those of Docker 25 and later: the blobs of an OCI image layout
(https://github.com/opencontainers/image-spec) with an ``index.json``, and a ``manifest.json`` for
older Dockers. The same image gives the same bytes. Every blob is named by its digest, so damage is
found before an engine loads the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from rlm_containers.errors import ImageArchiveError
from rlm_containers.state import replace_file

#: The largest JSON document in an archive, in bytes. They usually have a few kilobytes.
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
        names: the image's names, which an engine that loads the file gives to it.
        labels: the image's labels.
        architecture: the processor it is for, such as ``"amd64"``.
        size: the file's size in bytes.
    """

    path: Path
    names: tuple[str, ...]
    labels: dict[str, str]
    architecture: str
    size: int


def pack_archive(saved: Path, target: Path) -> None:
    """Make an archive from a file that an engine saved.

    Args:
        saved: a file of ``docker save`` or ``podman save --format=docker-archive``, of one image.
        target: the archive to make or to replace as a whole.

    Raises:
        ImageArchiveError: ``saved`` is no such file.
        OSError: ``target`` cannot be written.
    """
    with (
        _opened(saved) as source,
        replace_file(target, mode=0o666, durable=True) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        _pack(source, _entry(source, saved), new)


def read_archive(path: Path, *, verify: bool = False) -> ImageArchive:
    """Read an archive, or another file of ``docker save`` or ``podman save``.

    Args:
        path: the file.
        verify: whether to read all of it and compare blobs with the digests in their names.

    Raises:
        ImageArchiveError: the file is not an archive, or is damaged.
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
    """Read what ``manifest.json`` says about the only image."""
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
        # Follows links to other members: docker saves a repeated layer as a link.
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
        """Write a blob and describe it. The stream is read twice, as the name is the digest."""
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
    # containerd and Docker read the first annotation; podman reads the second.
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
        remedy="Export the image again. Files of `docker save` and `podman save` work too.",
    )
