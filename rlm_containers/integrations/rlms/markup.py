"""Making HTML of what nobody trusts: text, code and pictures that models and containers made."""

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
_MOST = 200_000

#: Bytes of one picture that are shown.
_LARGEST = 10 * 1024**2

# In an <img> a browser runs no script of any of them, an SVG's neither.
_PICTURES = frozenset(("image/gif", "image/jpeg", "image/png", "image/svg+xml", "image/webp"))

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])?")
# What HTML cannot have in it; and marks that make text run in the other direction.
_IMPOSSIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)

# "nowrap": the <pre> around it is ours.
_FORMATTER = HtmlFormatter(nowrap=True)


def escape(text: str) -> str:
    """Text as a part of HTML, of an attribute too, cut if it is very long."""
    cut = len(text) - _MOST
    text = _IMPOSSIBLE.sub("\N{REPLACEMENT CHARACTER}", _ESCAPES.sub("", text[:_MOST]))
    return html.escape(text) + (f" … {cut:,} characters more" if cut > 0 else "")


def element(name: str, *children: str, classes: str = "", **attributes: str) -> str:
    """An element. Its children are HTML already, its attributes are not."""
    if classes:
        attributes["class"] = classes
    words = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{words}>{''.join(children)}</{name}>"


def details(summary: str, *children: str, classes: str = "", is_open: bool = False) -> str:
    """Something that can be opened and shut, with HTML in it."""
    # Without a script: <details> needs none.
    attributes = {"open": ""} if is_open else {}
    return element("details", element("summary", summary), *children, classes=classes, **attributes)


def text_block(text: str, classes: str = "") -> str:
    """Text with its line breaks; nothing if there is none."""
    return element("pre", escape(text), classes=classes) if text.strip() else ""


def code_block(code: str) -> str:
    """Python, in colours."""
    text = _IMPOSSIBLE.sub("\N{REPLACEMENT CHARACTER}", code[:_MOST])
    return element(
        "pre", element("code", highlight(text, PythonLexer(), _FORMATTER)), classes="code"
    )


def style_of_code() -> str:
    """The style sheet that goes with :func:`code_block`, for light and for dark."""
    light, dark = (
        HtmlFormatter(style=style).get_style_defs(".code")  # type: ignore[no-untyped-call]
        for style in ("default", "github-dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def picture(figure: Figure) -> str:
    """A picture, or a line that says why it is not shown."""
    if figure.mime_type not in _PICTURES:
        return element("p", escape(f"{figure.name} ({figure.mime_type})"), classes="aside")
    if len(figure.data) > _LARGEST:
        size = f"{len(figure.data) / 1024**2:.1f} MiB"
        return element("p", escape(f"{figure.name} is too large: {size}"), classes="aside")
    data = base64.b64encode(figure.data).decode("ascii")
    image = f'<img src="data:{figure.mime_type};base64,{data}" alt="{escape(figure.name)}">'
    return element("figure", image, element("figcaption", escape(figure.name)))


def seconds(number: float) -> str:
    """A time, for people."""
    if number < 0.9995:
        return f"{number * 1000:.0f} ms"
    if number < 99.95:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest} s"


def rows(pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and values, both text."""
    return element(
        "table",
        *(
            element("tr", element("th", escape(name), scope="row"), element("td", escape(value)))
            for name, value in pairs
        ),
    )
