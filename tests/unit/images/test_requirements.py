"""Requirements: what pip is given, which files are copied, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlm_containers.errors import OptionError
from rlm_containers.images.requirements import Requirements, read_requirements

GOOD = [
    "numpy",
    "pandas==2.*",
    "a-b_c.d >= 1, < 2",
    "a (>=1)",
    "a[x,y]~=1.0",
    "a===1",
    "a!=1",
    "a; python_version < '3.12'",
    "a >1 ; sys_platform == 'linux'",
    "a @ https://example.org/a-1.0.whl",
    "git+https://example.org/a.git@v1#egg=a",
    "https://example.org/a-1.0.tar.gz",
]

BAD = [
    "",
    " ",
    "numpy pandas",
    "numpy,pandas",
    "numpy=1",
    "-r file",
    "--index-url=https://example.org",
    "# numpy",
    "a\n--index-url https://example.org",
    "a\rb",
    "a\x1b[31m",
    ".",
    "./directory",
    "-",
    "a @",
]


@pytest.mark.parametrize("text", GOOD)
def test_packages(text: str) -> None:
    assert read_requirements([f" {text} "], None) == Requirements(text=f"{text}\n")


@pytest.mark.parametrize("text", BAD)
def test_wrong_packages(text: str) -> None:
    with pytest.raises(OptionError, match="^packages: .* is not a requirement"):
        read_requirements([text], None)


def test_the_order_of_packages_means_nothing() -> None:
    assert read_requirements(["b", "a", "b"], None) == read_requirements(["a", "b"], None)
    assert read_requirements([], None) is None


def written(found: Requirements | None, directory: Path) -> dict[str, str]:
    assert found is not None
    directory.mkdir()
    found.write(directory)
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_wheels_of_this_host_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "a b" / "x-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_text("wheel")
    monkeypatch.chdir(tmp_path)
    found = read_requirements([str(wheel), "a b/x-1.0-py3-none-any.whl", "six"], None)
    assert written(found, tmp_path / "build") == {
        "requirements.txt": "./x-1.0-py3-none-any.whl\nsix\n",
        "x-1.0-py3-none-any.whl": "wheel",
    }
    assert found is not None
    before = found.parts()
    wheel.write_text("another")
    assert found.parts() != before
    other = tmp_path / "x-1.0-py3-none-any.whl"
    other.write_text("")
    with pytest.raises(OptionError, match="two files have the name x-1.0"):
        read_requirements([str(wheel), str(other)], None)
    with pytest.raises(OptionError, match=r"there is no file .*gone\.whl"):
        read_requirements(["gone.whl"], None)


def test_a_file_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x-1.0.tar.gz").write_text("source")
    (tmp_path / "more" / "pins.txt").write_text("b<2\n")
    (tmp_path / "more" / "inner.txt").write_text(
        "./x-1.0.tar.gz  # of ours\n-cpins.txt\n--constraint=pins.txt\n"
    )
    (tmp_path / "requirements.txt").write_text(
        "\ufeff# a comment that \\\n"
        "--index-url https://${NAME}:${lower}@example.org/simple\n"
        "--pre\n"
        "\n"
        "a==1 \\\n"
        "    --hash=sha256:0123 \\\n"
        "    --hash=sha256:4567  # a hash\n"
        "b#egg\n"
        "-r more/inner.txt\n"
        "-r https://example.org/theirs.txt\n"
        "-e git+https://example.org/c.git#egg=c\n"
        "--find-links https://example.org/wheels\n"
        "last"
    )
    monkeypatch.setenv("NAME", "s3cret")
    found = read_requirements(["six"], tmp_path / "requirements.txt")
    files = written(found, tmp_path / "build")
    assert files.pop("requirements.txt").splitlines() == [
        "six",
        "--index-url https://s3cret:${lower}@example.org/simple",
        "--pre",
        "a==1      --hash=sha256:0123      --hash=sha256:4567",
        "b#egg",
        "./x-1.0.tar.gz",
        "--constraint constraints-1.txt",
        "--constraint constraints-2.txt",
        "-r https://example.org/theirs.txt",
        "-e git+https://example.org/c.git#egg=c",
        "--find-links https://example.org/wheels",
        "last",
    ]
    assert files == {
        "x-1.0.tar.gz": "source",
        "constraints-1.txt": "b<2\n",
        "constraints-2.txt": "b<2\n",
    }
    assert found is not None
    assert "s3cret" not in str(found.parts())


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "--editable=../here",
        "./directory",
        "name @ file:///srv/x.whl",
        "file:///srv/x.whl",
        "-f wheels",
        "--find-links=file-less/wheels",
    ],
)
def test_directories_of_this_host_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"six\n{line}\n")
    with pytest.raises(OptionError, match=f"{path}.*a build cannot see") as caught:
        read_requirements([], path)
    assert "wheel" in caught.value.remedy


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^requirements: .*missing.txt cannot be read: No such"):
        read_requirements([], tmp_path / "missing.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    with pytest.raises(OptionError, match="not UTF-8"):
        read_requirements([], tmp_path / "bytes.txt")
    (tmp_path / "a.txt").write_text("-r b.txt")
    (tmp_path / "b.txt").write_text("--requirement a.txt")
    with pytest.raises(OptionError, match="includes itself"):
        read_requirements([], tmp_path / "a.txt")
    (tmp_path / "c.txt").write_text("-r missing.txt")
    with pytest.raises(OptionError, match=r"^.*c\.txt: .*missing\.txt cannot be read"):
        read_requirements([], tmp_path / "c.txt")


def test_the_same_file_may_be_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("-r b.txt\n-r b.txt\n")
    (tmp_path / "b.txt").write_text("six\n")
    found = read_requirements([], tmp_path / "a.txt")
    assert found is not None
    assert found.text == "six\nsix\n"
    (tmp_path / "b.txt").write_text("# nothing\n")
    assert read_requirements([], tmp_path / "a.txt") is None
