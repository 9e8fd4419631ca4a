"""What the documents say of the tests is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

#: Where documents name tests, as a path below ``tests`` and a function.
TEST = re.compile(r"`(?:tests/)?((?:unit|engine|compat)/test_\w+\.py)(?:::(test_\w+))?`")


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda d: d.name)
def test_the_tests_that_are_named_exist(document: Path) -> None:
    for file, function in TEST.findall(document.read_text()):
        path = ROOT / "tests" / file
        assert path.is_file(), file
        if function:
            assert re.search(rf"^(async )?def {function}\(", path.read_text(), re.MULTILINE), (
                f"{file} has no {function}"
            )


def test_the_page_on_compatibility_names_some() -> None:
    assert len(TEST.findall((ROOT / "docs" / "compatibility.md").read_text())) > 40


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
