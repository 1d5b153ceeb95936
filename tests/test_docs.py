"""Every Python block of the README and of docs/ runs, and prints the text on the page."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

from pyro_resflow.extras import MissingExtraError
from tests.versions import torch_is

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
NEEDS_TORCH = {"docs/choose_logdet.md": "2.7", "docs/performance.md": "2.7"}
"""Pages with examples that need a newer torch than the package, see docs/versions.md."""
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A Python block of a page.

    Attributes:
        code: What runs, below as many empty lines as stand above it, so that errors point there.
        shown: What the page says that it prints: the block of text that follows, if one does.
    """

    code: str
    shown: str | None


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page, in order."""
    fences = list(FENCE.finditer(text))
    followers = [*fences[1:], None][: len(fences)]
    return [
        Block(
            "\n" * text.count("\n", 0, fence.start(3)) + textwrap.dedent(fence[3]),
            textwrap.dedent(after[3]) if after is not None and after[2] == "text" else None,
        )
        for fence, after in zip(fences, followers, strict=bool(fences))  # a page may have none
        if fence[2] == "python"
    ]


class DemandErrors(ast.NodeTransformer):
    """Lets every `try` of a page fail whose body raises no error: the page shows one."""

    def visit_Try(self, node: ast.Try) -> ast.Try:
        """Add an `else` that fails."""
        self.generic_visit(node)
        if node.handlers and not node.orelse:
            failure = f"the page shows an error in line {node.lineno}, and none is raised"
            lines_above = "\n" * (node.lineno - 1)
            (fails,) = ast.parse(f"{lines_above}raise AssertionError({failure!r})").body
            node.orelse = [fails]
        return node


def run(block: Block, name: str, namespace: dict[str, object]) -> str:
    """Run a block, demanding the errors that it catches; returns what it prints."""
    tree = ast.fix_missing_locations(DemandErrors().visit(ast.parse(block.code, name)))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, name, "exec"), namespace)
    return printed.getvalue()


def agrees(printed: str, shown: str) -> bool:
    """Whether words agree: line breaks and numbers may differ, and `...` stands for anything."""
    words, pattern = (
        " ".join(NUMBER.sub("#", text.replace("...", "\0")).split()) for text in (printed, shown)
    )
    return re.fullmatch(re.escape(pattern).replace("\0", ".*"), words) is not None


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_do_what_the_page_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch_is(least := NEEDS_TORCH.get(name, "2.4")):
        pytest.skip(f"{name} needs torch {least}")
    page = blocks((ROOT / name).read_text())
    if not page:
        pytest.skip(f"{name} has no Python block")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    dtype = torch.get_default_dtype()
    namespace: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in page:
            printed = run(block, str(ROOT / name), namespace)
            if block.shown is not None:
                assert agrees(printed, block.shown), f"printed: {printed}\nshown: {block.shown}"
    except MissingExtraError as error:
        pytest.skip(str(error))
    finally:
        torch.set_default_dtype(dtype)


def test_blocks_are_found_with_what_they_show() -> None:
    page = (
        "a\n```python\nx = 1\n```\n- b\n  ```python\n  y = 2\n  ```\n\nc\n\n"
        "  ```text\n  2 2\n  ```\n```sh\nls\n```\n```text\nd\n```\n"
    )
    assert blocks(page) == [Block("\n\nx = 1\n", None), Block("\n" * 6 + "y = 2\n", "2 2\n")]


def test_a_page_without_code_has_no_blocks() -> None:
    assert blocks("a table and nothing else\n") == []


def test_an_error_that_a_page_shows_is_demanded() -> None:
    shows = "try:\n    {}\nexcept ValueError as error:\n    print(error)\n"
    assert run(Block(shows.format("int('a')"), None), "page", {}).startswith("invalid literal")
    with pytest.raises(AssertionError, match="shows an error in line 1, and none is raised"):
        run(Block(shows.format("int('1')"), None), "page", {})


@pytest.mark.parametrize(
    ("printed", "agreeing"),
    [
        ("size must be positive,\ngot -3: give 1 or more", True),
        ("size must be positive, got -3", False),
        ("shape must be positive, got -3: give 1", False),
    ],
)
def test_what_is_shown_is_compared_word_for_word(printed: str, agreeing: bool) -> None:
    assert agrees(printed, "size must be positive, got -1:\n...\n") == agreeing


def test_a_page_takes_nothing_from_another_host() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    scripts = re.findall(r"^  - (\S+\.(?:js|css))$", settings, re.MULTILINE)
    assert "katex/katex.min.js" in scripts
    assert all((ROOT / "docs" / script).is_file() for script in scripts)
    assert (ROOT / "docs/katex/LICENSE").read_text().startswith("The MIT License")
    styles = (ROOT / "docs/katex/katex.min.css").read_text()
    fonts = set(re.findall(r"url\(([^)]*)\)", styles))
    assert fonts
    assert all((ROOT / "docs/katex" / font).is_file() for font in fonts)
