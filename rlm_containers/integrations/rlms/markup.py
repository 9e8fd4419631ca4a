"""Makes HTML of untrusted text, code and pictures, which models and containers made."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable

from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers.python import PythonLexer

from rlm_containers.integrations.rlms.trajectory import Figure

#: Characters of one text that are shown.
_MAX_TEXT = 200_000

#: The most bytes of a picture that is shown.
_MAX_PICTURE = 10 * 1024**2

# In an <img>, a browser runs no script, not even that of an SVG.
_PICTURES = frozenset(("image/gif", "image/jpeg", "image/png", "image/svg+xml", "image/webp"))

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])?")
# Characters that HTML cannot contain, and marks that reverse the direction of text.
_IMPOSSIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)

# Without a <pre>: code_block() adds it.
_FORMATTER = HtmlFormatter(nowrap=True)


def escape(text: str) -> str:
    """Return text as HTML, for elements and attributes, cut if it is very long."""
    cut = len(text) - _MAX_TEXT
    text = _IMPOSSIBLE.sub("\N{REPLACEMENT CHARACTER}", _ESCAPES.sub("", text[:_MAX_TEXT]))
    return html.escape(text) + (f" … {cut:,} characters more" if cut > 0 else "")


def element(name: str, *children: str, classes: str = "", **attributes: str) -> str:
    """Return an element. Its children are HTML already, its attributes are plain text."""
    if classes:
        attributes["class"] = classes
    words = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{words}>{''.join(children)}</{name}>"


def details(summary: str, *children: str, classes: str = "", is_open: bool = False) -> str:
    """Return a part of the page that opens and closes. All arguments are HTML already."""
    attributes = {"open": ""} if is_open else {}
    return element("details", element("summary", summary), *children, classes=classes, **attributes)


def text_block(text: str, classes: str = "") -> str:
    """Return text with its line breaks; an empty string if there is none."""
    return element("pre", escape(text), classes=classes) if text.strip() else ""


def code_block(code: str) -> str:
    """Return Python code with colours."""
    text = _IMPOSSIBLE.sub("\N{REPLACEMENT CHARACTER}", code[:_MAX_TEXT])
    return element(
        "pre", element("code", highlight(text, PythonLexer(), _FORMATTER)), classes="code"
    )


def style_of_code() -> str:
    """Return the style sheet of :func:`code_block`, light and dark."""
    light, dark = (
        HtmlFormatter(style=style).get_style_defs(".code")  # type: ignore[no-untyped-call]
        for style in ("default", "github-dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def picture(figure: Figure) -> str:
    """Return a picture, or a line that says why it is not shown."""
    if figure.mime_type not in _PICTURES:
        return element("p", escape(f"{figure.name} ({figure.mime_type})"), classes="aside")
    if len(figure.data) > _MAX_PICTURE:
        size = f"{len(figure.data) / 1024**2:.1f} MiB"
        return element("p", escape(f"{figure.name} is too large: {size}"), classes="aside")
    data = base64.b64encode(figure.data).decode("ascii")
    image = f'<img src="data:{figure.mime_type};base64,{data}" alt="{escape(figure.name)}">'
    return element("figure", image, element("figcaption", escape(figure.name)))


def seconds(number: float) -> str:
    """Return a time for people to read."""
    if number < 0.9995:
        return f"{number * 1000:.0f} ms"
    if number < 99.95:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s"


def rows(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, both plain text."""
    return element(
        "table",
        *(
            element("tr", element("th", escape(name), scope="row"), element("td", escape(value)))
            for name, value in pairs
        ),
    )
