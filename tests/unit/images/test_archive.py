"""Image archives: made from what engines save, read, and refused if they are damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.errors import ImageArchiveError
from rlm_containers.images.archive import pack_archive, read_archive

NAME = "localhost/a/b:1"
LAYER = b"a layer" * 1000
CONFIG = {"architecture": "amd64", "config": {"Labels": {"k": "v"}}, "rootfs": {"diff_ids": []}}
MANIFEST = [{"Config": "c.json", "RepoTags": [NAME], "Layers": ["1/layer.tar"]}]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def save(path: Path, *, manifest: Any = MANIFEST, layer: bytes = LAYER) -> Path:
    """Write what an engine saves, in the format of docker since 1.10."""
    with tarfile.open(path, "w") as archive:
        add(archive, "1/layer.tar", layer)
        # docker saves a repeated layer as a link.
        link = tarfile.TarInfo("2/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../1/layer.tar"
        archive.addfile(link)
        add(archive, "c.json", json.dumps(CONFIG).encode())
        content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        add(archive, "manifest.json", content)
    return path


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def test_an_archive_is_an_oci_layout_that_older_dockers_read(tmp_path: Path) -> None:
    pack_archive(save(tmp_path / "saved"), tmp_path / "packed")
    found = members(tmp_path / "packed")
    for name, content in found.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(content).hexdigest() == name.rpartition("/")[2]
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (described,) = json.loads(found["index.json"])["manifests"]
    assert described["annotations"]["org.opencontainers.image.ref.name"] == NAME
    manifest = json.loads(found["blobs/" + described["digest"].replace(":", "/")])
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
    assert layer["size"] == len(LAYER)
    (older,) = json.loads(found["manifest.json"])
    assert older["RepoTags"] == [NAME]
    assert [found[name] for name in older["Layers"]] == [LAYER]
    assert json.loads(found[older["Config"]]) == CONFIG


def test_an_archive_can_be_read(tmp_path: Path) -> None:
    pack_archive(save(tmp_path / "saved"), tmp_path / "packed")
    for name in ("saved", "packed"):
        found = read_archive(tmp_path / name, verify=True)
        assert (found.names, found.labels, found.architecture) == ((NAME,), {"k": "v"}, "amd64")
        assert found.size == (tmp_path / name).stat().st_size


def test_the_same_image_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack_archive(save(tmp_path / f"saved-{name}"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    pack_archive(tmp_path / "a", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_layer_that_is_there_twice_is_written_once(tmp_path: Path) -> None:
    twice = [{**MANIFEST[0], "Layers": ["1/layer.tar", "2/layer.tar", "1/layer.tar"]}]
    pack_archive(save(tmp_path / "saved", manifest=twice), tmp_path / "packed")
    found = members(tmp_path / "packed")
    assert list(found.values()).count(LAYER) == 1
    (older,) = json.loads(found["manifest.json"])
    assert [found[name] for name in older["Layers"]] == [LAYER] * 3


def test_compressed_layers_have_their_media_type(tmp_path: Path) -> None:
    pack_archive(save(tmp_path / "saved", layer=gzip.compress(LAYER)), tmp_path / "packed")
    found = members(tmp_path / "packed")
    (described,) = json.loads(found["index.json"])["manifests"]
    manifest = json.loads(found["blobs/" + described["digest"].replace(":", "/")])
    assert manifest["layers"][0]["mediaType"].endswith(".tar+gzip")


def test_a_compressed_file_can_be_read(tmp_path: Path) -> None:
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(save(tmp_path / "saved").read_bytes()))
    assert read_archive(packed, verify=True).names == (NAME,)


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def with_manifest(manifest: Any) -> Callable[[Path], object]:
    return lambda path: save(path, manifest=manifest)


def cut(path: Path) -> None:
    content = save(path).read_bytes()
    path.write_bytes(content[:5000])


def circle(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, target in (("manifest.json", "b"), ("b", "manifest.json")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)


@pytest.mark.parametrize(
    "make",
    [
        write(b""),
        write(b"not a tar file" * 100),
        write(b"\x1f\x8b\x08garbage"),
        cut,
        circle,
        with_manifest(b"{"),
        with_manifest(b"[" * 100_000),
        with_manifest({}),
        with_manifest([]),
        with_manifest([5]),
        with_manifest(MANIFEST * 2),
        with_manifest([{"Config": "c.json"}]),
        with_manifest([{"Config": 5, "Layers": []}]),
        with_manifest([{"Config": "../../etc/passwd", "Layers": []}]),
        with_manifest([{"Config": "c.json", "Layers": ["missing"]}]),
    ],
)
def test_files_that_are_no_archives(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "given"
    make(path)
    with pytest.raises(ImageArchiveError, match=f"{path} is not an image archive, or damaged"):
        read_archive(path)
        pack_archive(path, tmp_path / "packed")
    assert [p.name for p in tmp_path.iterdir()] == ["given"]


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ImageArchiveError, match="cannot be read"):
            read_archive(path)


def test_a_changed_blob_is_found(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    pack_archive(save(tmp_path / "saved"), path)
    content = path.read_bytes().replace(LAYER, b"A" + LAYER[1:])
    path.write_bytes(content)
    assert read_archive(path).names == (NAME,)
    with pytest.raises(ImageArchiveError, match="damaged"):
        read_archive(path, verify=True)
