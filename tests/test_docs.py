"""Every Python block of the README and of the pages in docs/ runs as printed."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

from pyro_resflow.extras import MissingExtraError

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def source(page: Path) -> str:
    """The page's Python blocks one after the other, at their lines, so that errors point there."""
    text = page.read_text()
    lines = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(2))
        code = textwrap.dedent(block.group(2)).splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / name
    if not page.exists():
        pytest.skip(f"{name} does not exist yet")
    code = source(page)
    if not code.strip():
        pytest.skip(f"{name} has no Python block")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    dtype = torch.get_default_dtype()
    try:
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    except MissingExtraError as error:
        pytest.skip(str(error))
    finally:
        torch.set_default_dtype(dtype)


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n```python\nx = 1\n```\n- b\n  ```python\n  y = 2\n  ```\n```sh\nls\n```\n")
    assert source(page).splitlines() == ["", "", "x = 1", "", "", "", "y = 2", *[""] * 4]
