"""The image cache: files that every engine reads, an index that heals, and what prune removes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox, SandboxOptions
from rlm_containers.errors import ImageArchiveError, ImageNotFoundError
from rlm_containers.images import derive_image, list_images, prune_images, warm_image
from rlm_containers.images.archive import read_archive
from rlm_containers.images.cache import ARCHIVES, DERIVED, ImageCache
from rlm_containers.images.recipe import Recipe, read_recipe
from runtimes import Runtime, get_runtime
from tests.support import Engine, printed, usable


@pytest.fixture
def runtime(engine: Engine) -> Runtime:
    """The runtime under test."""
    return get_runtime(engine.runtime)


@pytest.fixture
def images(tmp_path: Path, cache: Path) -> ImageCache:
    """A cache of the test's own."""
    return ImageCache(tmp_path / "images")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """What nobody has built before, and what builds in no time."""
    directory = tmp_path / "recipe"
    directory.mkdir()
    (directory / "mark").write_text(secrets.token_hex(1000))
    (directory / "Dockerfile").write_text("COPY mark /srv/mark\nENV MARK=1\n")
    recipe = read_recipe(dockerfile=str(directory / "Dockerfile"))
    assert recipe is not None
    return recipe


@pytest.fixture
def built(engine: Engine, runtime: Runtime, images: ImageCache, recipe: Recipe) -> Iterator[str]:
    """An image that was built just now, and is in the cache's index."""
    name = derive_image(runtime, engine.image(), recipe, cache=images, again=True)
    yield name
    engine.run("rmi", "--force", name, check=False)


def others(engine: Engine) -> list[Engine]:
    """The other engines that this process can use."""
    return [Engine(name) for name in usable() if name != engine.name]


@pytest.fixture
def bases(engine: Engine, runtime: Runtime, tmp_path: Path) -> Iterator[dict[str, str]]:
    """One base image on every engine, by the engines' names.

    Each has its own otherwise, which is not the same to the last byte.
    """
    name = f"localhost/rlm-test/base:{secrets.token_hex(4)}"
    engine.run("tag", engine.image(), name)
    path = ImageCache(tmp_path / "base").export_image(runtime, name)
    everywhere = [engine, *others(engine)]
    for other in everywhere[1:]:
        ImageCache(tmp_path / "base").import_archive(get_runtime(other.runtime), path)
    yield {other.name: name for other in everywhere}
    for other in everywhere:
        other.run("rmi", name)


def test_two_engines_share_one_exported_image(
    engine: Engine, runtime: Runtime, images: ImageCache, recipe: Recipe, bases: dict[str, str]
) -> None:
    built = derive_image(runtime, bases[engine.name], recipe, cache=images, again=True)
    content = runtime.inspect_image(built).content
    path = images.export_image(runtime, built)
    assert path.parent == images.archives
    engine.run("rmi", built)
    # Each takes it from the file, and builds nothing: the engine itself, which has lost it, and
    # every other one, under the same name, for that is what goes into it.
    for other in (engine, *others(engine)):
        lines: list[str] = []
        reader = get_runtime(other.runtime)
        name = derive_image(
            reader, bases[other.name], recipe, cache=images, on_line=lines.append, again=True
        )
        try:
            assert (name, lines) == (built, [])
            assert reader.inspect_image(name).content == content
            with Sandbox(name, runtime=other.runtime) as box:
                assert printed(box, "import os; print('MARK' in os.environ)") == "True\n"
        finally:
            other.run("rmi", name)


def test_import_and_export_by_hand(
    engine: Engine, runtime: Runtime, images: ImageCache, built: str, tmp_path: Path
) -> None:
    path = images.export_image(runtime, built, tmp_path / "mine.tar")
    assert path == tmp_path / "mine.tar"
    assert not images.archives.exists()
    engine.run("rmi", built)
    (record,) = images.import_archive(runtime, path)
    assert built in record.tags
    assert engine.run("image", "inspect", built).returncode == 0
    # As the engine itself writes it.
    own = tmp_path / "own.tar"
    engine.run("save", "--output", str(own), built)
    engine.run("rmi", built)
    (record,) = images.import_archive(runtime, own)
    assert built in record.tags
    with pytest.raises(ImageNotFoundError):
        images.export_image(runtime, "localhost:1/no/such:1", path)
    assert read_archive(path).names == (built,)


def test_a_damaged_file_is_not_imported(
    engine: Engine, runtime: Runtime, images: ImageCache, built: str
) -> None:
    path = images.export_image(runtime, built)
    engine.run("rmi", built)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF  # in the largest layer
    path.write_bytes(content)
    with pytest.raises(ImageArchiveError, match="damaged"):
        images.import_archive(runtime, path)
    assert engine.run("image", "inspect", built, check=False).returncode != 0
    # The cache does without it.
    assert not images.load(runtime, built)


def test_a_damaged_index_is_made_anew(
    runtime: Runtime, images: ImageCache, built: str, caplog: pytest.LogCaptureFixture
) -> None:
    exported = images.export_image(runtime, built)
    images.index.path.write_text('{"version": 1, "entries": [{"store"')
    entries = {entry.name: entry for entry in list_images([runtime], images)}
    assert entries[built].kind == "built"
    assert "a Dockerfile" in entries[built].origin
    assert entries[exported.name].store == ARCHIVES
    assert entries[exported.name].size == exported.stat().st_size
    assert "damaged" in caplog.text
    assert images.index.path.with_suffix(".damaged").exists()
    assert {entry.name for entry in images.index.entries()} == entries.keys()


def test_what_was_removed_by_others_is_forgotten(
    engine: Engine, runtime: Runtime, images: ImageCache, built: str
) -> None:
    path = images.export_image(runtime, built)
    engine.run("rmi", built)
    path.unlink()
    names = {entry.name for entry in list_images([runtime], images)}
    assert built not in names
    assert path.name not in names
    assert not images.index.path.read_text().count(built)


def test_what_stands_on_ours_is_not_ours(
    engine: Engine, runtime: Runtime, images: ImageCache, built: str
) -> None:
    name = f"localhost/rlm-containers-test/theirs:{secrets.token_hex(4)}"
    container = engine.run("create", built, "true").stdout.strip()
    try:
        engine.run("commit", container, name)
        names = {entry.name for entry in list_images([runtime], images)}
    finally:
        engine.run("rm", container)
        engine.run("rmi", name, check=False)
    assert built in names
    assert name not in names


@pytest.fixture
def ours(runtime: Runtime, built: str, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """The engine as if it had none of the images that others have derived on it."""
    find = runtime.find_images
    monkeypatch.setattr(
        runtime,
        "find_images",
        lambda labels: [record for record in find(labels) if built in record.tags],
    )
    return runtime


def test_prune(engine: Engine, ours: Runtime, images: ImageCache, built: str) -> None:
    path = images.export_image(ours, built)
    assert prune_images([ours], cache=images) == []
    assert prune_images([ours], unused=3600, keep=10**15, cache=images) == []
    (first, second) = prune_images([ours], keep=0, dry_run=True, cache=images)
    assert {first.entry.name, second.entry.name} == {built, path.name}
    assert path.exists()
    # The image was used first; without it the rest is small enough.
    (only,) = prune_images([ours], keep=path.stat().st_size, cache=images)
    assert (only.entry.name, only.reason) == (built, "")
    assert engine.run("image", "inspect", built, check=False).returncode != 0
    while not (gone := prune_images([ours], unused=0.0, cache=images)):
        pass  # until the clock has moved
    assert [item.entry.name for item in gone] == [path.name]
    assert not path.exists()
    assert prune_images([ours], keep=0, cache=images) == []


def test_prune_keeps_what_is_in_use(
    engine: Engine, ours: Runtime, images: ImageCache, built: str
) -> None:
    with Sandbox(built, runtime=engine.runtime) as box:
        (item,) = prune_images([ours], keep=0, cache=images)
        assert item.reason
        assert printed(box, "print('on')") == "on\n"
    assert built in {entry.name for entry in list_images([ours], images)}


def test_warming_makes_everything_ready(engine: Engine, images: ImageCache, tmp_path: Path) -> None:
    assert warm_image(
        SandboxOptions(image=engine.image(), runtime=engine.runtime), cache=images
    ) == (engine.image())
    dockerfile = str(tmp_path / "Dockerfile")
    (tmp_path / "Dockerfile").write_text(f"ENV MARK={secrets.token_hex(8)}\n")
    options = SandboxOptions(image=engine.image(), runtime=engine.runtime, dockerfile=dockerfile)
    lines: list[str] = []
    name = warm_image(options, cache=images, on_line=lines.append)
    try:
        assert lines
        lines.clear()
        assert warm_image(options, cache=images, on_line=lines.append) == name
        assert lines == []
    finally:
        engine.run("rmi", name)
    missing = SandboxOptions(image="localhost:1/no/such/image:1", runtime=engine.runtime)
    with pytest.raises(ImageNotFoundError):
        warm_image(missing, cache=images)


def test_an_archive_under_a_false_name(
    engine: Engine, runtime: Runtime, images: ImageCache, tmp_path: Path
) -> None:
    name = f"{DERIVED}:{secrets.token_hex(10)}"
    engine.run("tag", engine.image(), name)
    try:
        engine.run("save", "--output", str(tmp_path / "false.tar"), name)
    finally:
        engine.run("rmi", name)
    with pytest.raises(ImageArchiveError, match="is not that image"):
        images.import_archive(runtime, tmp_path / "false.tar")
