"""The report on a trajectory: its contents, and how a browser shows it."""

from __future__ import annotations

import html
import io
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from rlm_containers.integrations.rlms import (
    Figure,
    ModelUsage,
    Trajectory,
    TrajectoryCall,
    TrajectoryCell,
    Turn,
    render_report,
    write_report,
)

#: Changes the title of the page if it runs.
SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


def png(red: int, green: int, blue: int) -> bytes:
    """Return a PNG of one colour, 40 by 30 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><script>alert(1)</script></svg>'

INNER = Trajectory(
    model="sub",
    turns=(Turn(response="An inner thought", seconds=0.5),),
    answer="inner answer",
    seconds=0.6,
)

TRAJECTORY = Trajectory(
    model="root",
    question=f"What is it? {SCRIPT}",
    context=(("a.txt", 20_000), ("b.txt", 3)),
    answer=f"A fox & <b>no dog</b>{SCRIPT}",
    backend="openai at http://127.0.0.1/v1",
    environment=(("image", "python:3.11-slim"),),
    started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    seconds=175.25,
    usage=(ModelUsage(model="root", calls=3, input_tokens=12_345, output_tokens=67, cost=0.0123),),
    turns=(
        Turn(
            response=f"Let me look. {SCRIPT}\n```repl\nprint(1)\n```\nAnd then?",
            seconds=3.0,
            cells=(
                TrajectoryCell(
                    code=f"print(1)  # {SCRIPT}",
                    stdout=f"\x1b[31mred\x1b[0m \x00{SCRIPT}",
                    stderr="Traceback \ud800 \u202egnp.exe",
                    seconds=1.0,
                    variables={"x": f"'{SCRIPT}'"},
                    calls=(
                        TrajectoryCall(model="sub", prompt=SCRIPT, response="yes", seconds=0.25),
                        TrajectoryCall(
                            model="sub", prompt="deep", response="no", seconds=0.6, trajectory=INNER
                        ),
                    ),
                    figures=(
                        Figure(name='"><script>.png', mime_type="image/png", data=png(255, 0, 0)),
                        Figure(name="drawn.svg", mime_type="image/svg+xml", data=SVG),
                        Figure(name="page.html", mime_type="text/html", data=SCRIPT.encode()),
                    ),
                ),
            ),
        ),
        Turn(response="I am done.", seconds=0.0101),
    ),
)


class Elements(HTMLParser):
    """Parses a page: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_contents_of_the_page() -> None:
    text = Elements(render_report(TRAJECTORY)).text
    for shown in (
        "What is it?", "A fox & <b>no dog</b>", "root (openai at http://127.0.0.1/v1)", "2 min 55 s",
        "2026-01-02 03:04:05 UTC", "12,345 tokens in, 67 out, $0.0123", "20,000 characters",
        "2, with 1 cell and 2 calls", "Let me look.", "And then?", "print(1)", "red ", "Traceback",
        "a recursive call of sub, 600 ms", "An inner thought", "what it did: 1 turn", "1 variable",
        "Turn 2 10 ms", "page.html (text/html)",
    ):  # fmt: skip
        assert shown in text, shown
    assert "```" not in text  # cells are shown separately


def test_untrusted_text_never_becomes_an_element() -> None:
    page = render_report(TRAJECTORY)
    elements = Elements(page)
    kinds = {tag for tag, _ in elements.found}
    assert not kinds & {"script", "iframe", "link", "object", "embed", "form", "base"}
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], tag
        source = attributes.get("src")
        assert source is None or source.startswith(("data:image/png", "data:image/svg+xml"))
        target = attributes.get("href")
        assert target is None or target.startswith("#turn-")
    assert html.escape(SCRIPT) in page
    for wrong in "\x00\x1b\ud800\u202e":
        assert wrong not in page


def test_nothing_is_fetched() -> None:
    page = render_report(TRAJECTORY)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\((?!data:)", page)


def test_long_texts_are_cut() -> None:
    cell = TrajectoryCell(
        code="x", stdout="y" * 10**6, stderr="", seconds=1.0, variables={}, calls=(), figures=()
    )
    page = render_report(
        Trajectory(model="m", turns=(Turn(response="", seconds=1.0, cells=(cell,)),))
    )
    assert "800,000 characters more" in page
    assert len(page) < 300_000


def test_a_failure() -> None:
    page = render_report(Trajectory(model="m", turns=(), question="q", error="It is <broken>."))
    assert "No answer" in page
    assert "It is &lt;broken&gt;." in page
    assert "There were none." in page


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    path.write_text("old")
    write_report(TRAJECTORY, path)
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["out.html"]
    other = tmp_path / "other"
    other.write_text("")
    assert path.stat().st_mode == other.stat().st_mode
    with pytest.raises(OSError, match="directory"):
        write_report(TRAJECTORY, tmp_path / "nonesuch" / "out.html")


# In a browser


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("NO BROWSER: the report is not tried in one; `apt-get install chromium` brings one")


@pytest.fixture(scope="module")
def browser() -> str:
    return chromium()


def browse(browser: str, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open a page without a window and without a network."""
    return subprocess.run(
        (
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--v=0",
            "--host-resolver-rules=MAP * ~NOTFOUND", *arguments, page.as_uri(),
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "out.html"
    write_report(TRAJECTORY, path)
    return path


def test_a_browser_shows_it_and_runs_nothing(browser: str, page: Path) -> None:
    done = browse(browser, page, "--dump-dom")
    assert done.returncode == 0, done.stderr
    # A script in the page would have run by now.
    elements = Elements(done.stdout)
    assert "A fox & <b>no dog</b>" in elements.text
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title.startswith("What is it?")
    assert "owned" not in title[:20]
    kinds = [tag for tag, _ in elements.found]
    assert "script" not in kinds
    assert kinds.count("img") == 2
    # The page's own policy did not block anything of it, such as its styles.
    assert "CONSOLE" not in done.stderr, done.stderr


def test_a_browser_paints_the_figures(browser: str, page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    done = browse(
        browser, page, f"--screenshot={shot}", "--window-size=500,2600", "--hide-scrollbars"
    )
    assert done.returncode == 0, done.stderr
    with Image.open(shot) as picture:
        counted = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert counted is not None
    colours = {colour: count for count, colour in counted}
    assert colours[255, 0, 0] > 1000  # the figure has round corners
    for bar in (
        (0x8B, 0x7C, 0xF6),
        (0x2F, 0x9E, 0x8F),
        (0xE5, 0xA6, 0x3A),
    ):  # the bars of the timeline
        assert colours[bar] > 200, bar
