"""Links from the documents to files of the repository that are no part of the site.

A reader of the repository can follow them. The site has no such page, so there the link's text
stands by itself. mkdocs calls what is here, see ``hooks`` in mkdocs.yml.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from typing import Any

logger = logging.getLogger("mkdocs.hooks.outside_links")

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]*)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Take the links out of a page that lead out of the directory of the documents."""
    directory = posixpath.dirname(page.file.src_uri)

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(directory, target.partition("#")[0]))
        if not path.startswith(".."):
            return match[0]
        if not os.path.exists(os.path.join(config.docs_dir, path)):
            logger.warning("%s: there is no %s", page.file.src_uri, target)
        return text

    return _LINK.sub(plain, markdown)
