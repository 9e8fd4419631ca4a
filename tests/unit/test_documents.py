"""What the documents say of the tests and of the options is so."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from rlm_containers import SandboxOptions

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


def test_the_readme_has_every_option_with_its_default() -> None:
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| `([^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    told = {
        name: ast.literal_eval(default)
        for names, default in rows
        for name in re.findall(r"\w+", names)
    }
    options = SandboxOptions()
    assert told == {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options)
    }


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/reliability.md", "docs/security.md"],
)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / document).read_text()):
        assert target.startswith("https://") or (folder / target).exists(), target
