"""What the documents say of the tests is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

#: Where documents name tests, as a path below ``tests`` and a function.
TEST = re.compile(
    r"`(?:tests/)?((?:unit(?:/\w+)?|behaviour|engine|compat|agents)/test_\w+\.py)(?:::(test_\w+))?`"
)


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")), ids=lambda d: d.name)
def test_the_tests_that_are_named_exist(document: Path) -> None:
    for file, function in TEST.findall(document.read_text()):
        path = ROOT / "tests" / file
        assert path.is_file(), file
        if function:
            assert re.search(rf"^(async )?def {function}\(", path.read_text(), re.MULTILINE), (
                f"{file} has no {function}"
            )


@pytest.mark.parametrize(
    ("page", "least"), [("compatibility", 40), ("reliability", 80), ("security", 150)]
)
def test_the_pages_that_promise_something_name_some(page: str, least: int) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    named = TEST.findall(text)
    assert len(named) > least
    # Nor is one written so that it is not looked for.
    assert len(named) == len(re.findall(r"test_\w+\.py", text)), page


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/reliability.md", "docs/security.md"],
)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / document).read_text()):
        assert target.startswith("https://") or (folder / target).exists(), target
