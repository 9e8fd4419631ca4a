"""A user's Dockerfile: the images below it, and the files that its hash covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlm_containers.errors import OptionError
from rlm_containers.images.dockerfile import read_dockerfile


@pytest.mark.parametrize(
    ("text", "built", "bases", "on_image"),
    [
        ("RUN a\n", "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN a\n", (), True),
        ("FROM $BASE_IMAGE\nRUN a", "ARG BASE_IMAGE\nFROM $BASE_IMAGE\nRUN a", (), True),
        (
            "arg base_image\nRUN x\n",
            "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\narg base_image\nRUN x\n",
            (),
            True,
        ),
        (
            "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN a",
            "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN a",
            (),
            True,
        ),
        (
            "# syntax=docker/dockerfile:1\n# escape=`\nFROM a:1\nRUN x\n",
            "# syntax=docker/dockerfile:1\n# escape=`\nARG BASE_IMAGE\nFROM a:1\nRUN x\n",
            ("a:1",),
            False,
        ),
        (
            "FROM --platform=linux/amd64 a:1 AS one\nFROM b AS two\nFROM one\nFROM scratch\n"
            "FROM $OTHER\n",
            None,
            ("a:1", "b"),
            False,
        ),
        ("FROM golang AS build\nFROM ${BASE_IMAGE}\n", None, ("golang",), True),
        ("RUN <<EOF\nFROM a\nEOF\nRUN echo \\\nFROM b\n", None, (), True),
    ],
)
def test_the_images_below_a_dockerfile(
    text: str, built: str | None, bases: tuple[str, ...], on_image: bool
) -> None:
    found = read_dockerfile(text + ("" if "\n" in text else "\n"))
    assert (found.bases, found.on_image, found.context) == (bases, on_image, None)
    if built is not None:
        assert found.text == built


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A directory with a few files."""
    for name in ("a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "sub" / "link").symlink_to("/etc/passwd")
    return tmp_path


@pytest.mark.parametrize(
    ("instruction", "names"),
    [
        ("COPY a.txt /x", ["a.txt"]),
        ("copy --chown=1:2 ./a.txt b.txt /x/", ["a.txt", "b.txt"]),
        ("COPY *.txt /x/", ["a.txt", "b.txt"]),
        ('COPY ["a.txt", "/x y"]', ["a.txt"]),
        ("COPY a.txt \\\n  # why\n  b.txt \\\n  /x/", ["a.txt", "b.txt"]),
        ("ADD sub /x", ["sub/c.txt", "sub/deep/d.txt", "sub/link"]),
        ("COPY /sub/deep/ /x", ["sub/deep/d.txt"]),
        ("ADD https://example.org/x /x", []),
        ("COPY --from=build /x /y", []),
        ("COPY missing ../outside /x/", []),
        ("COPY <<EOF /x\na.txt\nEOF", []),
        ("RUN cat a.txt", []),
        ("COPY . /x", None),
        ("COPY $WHAT /x", None),
        ("RUN --mount=type=bind,target=/x cat /x/a.txt", None),
        ("RUN --mount=type=bind,from=build,target=/x true", []),
        ("RUN --mount=type=cache,target=/x true", []),
        ("ONBUILD COPY a.txt /x", None),
    ],
)
def test_the_files_that_a_dockerfile_copies(
    instruction: str, names: list[str] | None, context: Path
) -> None:
    path = context / "Dockerfile"
    path.write_text(f"{instruction}\n")
    found = read_dockerfile(str(path))
    if names is None:
        names = ["Dockerfile", "a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt", "sub/link"]
    assert sorted(part.split(" ")[0] for part in found.parts()[1:]) == names
    assert found.context == context


def test_what_changes_the_hash_of_a_dockerfile(context: Path) -> None:
    path = context / "Dockerfile"
    path.write_text("COPY a.txt sub /x/\n")
    found = read_dockerfile(str(path))
    states = [found.parts()]
    (context / "b.txt").write_text("changed")
    assert found.parts() == states[0]
    (context / "a.txt").write_text("changed")
    states.append(found.parts())
    (context / "a.txt").chmod(0o755)
    states.append(found.parts())
    (context / "sub" / "link").unlink()
    (context / "sub" / "link").symlink_to("/etc/group")
    states.append(found.parts())
    (context / "sub" / "new").write_text("")
    states.append(found.parts())
    assert len({str(state) for state in states}) == 5


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for given in (str(tmp_path / "missing"), str(tmp_path), "RUN x"):
        with pytest.raises(OptionError, match="^dockerfile: .* cannot be read") as caught:
            read_dockerfile(given)
        assert "more than one line" in caught.value.remedy
    (tmp_path / "bytes").write_bytes(b"\xff\n")
    with pytest.raises(OptionError, match="not UTF-8"):
        read_dockerfile(str(tmp_path / "bytes"))
