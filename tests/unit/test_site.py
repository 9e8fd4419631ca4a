"""The documentation builds as a site without a warning, and has every page and every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlm_containers
import runtimes
from rlm_containers import Files, Sandbox
from rlm_containers import errors as rlm_errors
from runtimes import Runtime

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as scripts/docs does it: a warning, also of a page without a place in the
    navigation or of a link that leads nowhere, fails the build."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", directory),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # No note on a version, either.
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if not line.startswith("INFO ")] == []
    return directory


@pytest.fixture(scope="module")
def anchors(site: Path) -> set[str]:
    """What can be linked to on the pages of the reference."""
    return {
        name
        for page in (site / "reference").glob("*.html")
        for name in re.findall(r'\bid="([^"]+)"', page.read_text())
    }


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    for page in DOCS.rglob("*.md"):
        target = page.relative_to(DOCS).with_suffix(".html").as_posix()
        assert (site / target).is_file(), target
        # That of the page itself is "./".
        assert re.search(rf'<a href="(\./)?{re.escape(target)}" class="md-nav__link"', start) or (
            target == "index.html"
        ), target


def test_public_names_are_in_the_reference(anchors: set[str]) -> None:
    for package in (rlm_containers, runtimes):
        for name in package.__all__:
            assert f"{package.__name__}.{name}" in anchors, f"{package.__name__}.{name}"


def test_every_error_is_in_the_reference(anchors: set[str]) -> None:
    for name in rlm_errors.__all__:
        places = (f"{package}.{name}" for package in ("rlm_containers.errors", "runtimes.errors"))
        assert anchors.intersection((*places, f"rlm_containers.{name}")), name


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (Sandbox, "rlm_containers.Sandbox"),
        (Files, "rlm_containers.Files"),
        (Runtime, "runtimes.Runtime"),
    ],
)
def test_every_method_is_in_the_reference(anchors: set[str], kind: type, path: str) -> None:
    for name in dir(kind):
        if not name.startswith("_"):
            assert f"{path}.{name}" in anchors, f"{path}.{name}"


def test_pages_need_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r'\b(?:src|href)="(?:https?:)?//', tag), f"{page.name}: {tag}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text()), sheet.name


def test_docstrings_have_no_marks_of_another_language(site: Path) -> None:
    for page in (site / "reference").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text())
        assert not re.search(r":(?:attr|class|data|exc|func|meth|mod):", text), page.name
        assert "``" not in text, page.name
        assert "doctest:" not in text, page.name


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_python_in_the_documents_is_python(page: Path) -> None:
    text = page.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start()) + 1
        compile("\n" * line + block[1], page, "exec")


def test_a_link_out_of_the_documents_is_text_on_the_site(tmp_path: Path) -> None:
    done = _build(tmp_path, "See [the license](../LICENSE#top), [a page](other.md).", "LICENSE")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert "See the license, <a" in page


def test_a_link_to_a_file_that_is_not_there_fails_the_build(tmp_path: Path) -> None:
    done = _build(tmp_path, "See [the license](../LICENCE).", "LICENSE")
    assert done.returncode == 1
    assert "index.md: there is no ../LICENCE" in done.stderr


def _build(directory: Path, text: str, beside: str) -> subprocess.CompletedProcess[str]:
    """Build a site with the project's hook and nothing else of its own."""
    docs = directory / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(text)
    (docs / "other.md").write_text("Another.")
    (directory / beside).touch()
    hook = os.path.relpath(ROOT / "scripts" / "docs_site" / "outside_links.py", directory)
    (directory / "mkdocs.yml").write_text(f"site_name: x\nhooks: [{hook}]\nplugins: []\n")
    return subprocess.run(
        (sys.executable, "-m", "mkdocs", "build", "--strict"),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
