"""Converts the Sphinx markup of the docstrings, which Pyro also uses, to Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

DISPLAY = re.compile(r"^( *)\.\. math:: (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]*)`")
LINK = re.compile(r":\w+:`(pyro_resflow(?:\.\w+)*\.([A-Z]\w*))`")
NAME = re.compile(r":(?:class|func|meth|mod|attr):`~?([^`]*)`")


def to_markdown(text: str) -> str:
    """Convert formulas for KaTeX, links, and the title of the section of examples."""
    text = DISPLAY.sub(r"\1\\[ \2 \\]", text)
    text = INLINE.sub(r"\\(\1\\)", text)
    text = LINK.sub(r"[`\2`][\1]", text)
    text = NAME.sub(r"`\1`", text)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Apply `to_markdown` to every docstring of the package."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the docstring of a loaded object."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
