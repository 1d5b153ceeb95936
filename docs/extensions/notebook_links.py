"""A hook of mkdocs that leads the links of notebooks to the site's pages.

mkdocs resolves links between Markdown pages, not those in notebooks. With this hook a notebook
links to ``../page.md`` as a page does, which also works where the notebook itself is read.
"""

from __future__ import annotations

import logging
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

LINK = re.compile(r'href="([^":#]+\.md)(#[^"]*)?"')

log = logging.getLogger("mkdocs.hooks.notebook_links")


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to Markdown files by the addresses of their pages.

    Args:
        html: The page's content.
        page: The page.
        config: The site's settings.
        files: The site's files.
    """
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    folder = posixpath.dirname(page.file.src_uri)

    def address(link: re.Match[str]) -> str:
        target = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, link[1])))
        if target is None:
            log.warning("%s links to %s, which is no page", page.file.src_uri, link[1])
            return link[0]
        return f'href="{target.url_relative_to(page.file)}{link[2] or ""}"'

    return LINK.sub(address, html)
