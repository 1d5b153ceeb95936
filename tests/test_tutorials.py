"""The tutorials have been executed from top to bottom, and say what they are for."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))
LARGEST_PICTURE = 100_000
"""Bytes of a picture, so that the repository stays small."""
LARGEST_NOTEBOOK = 500_000
"""Bytes of a notebook."""

Cell = dict[str, Any]

every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=[path.stem for path in TUTORIALS])


def cells(path: Path, kind: str | None = None) -> list[Cell]:
    found = json.loads(path.read_text())["cells"]
    return [cell for cell in found if kind in (None, cell["cell_type"])]


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def text(cell: Cell) -> str:
    return "".join(cell["source"])


def test_the_site_has_every_tutorial() -> None:
    listed = re.findall(r"tutorials/(\w+)\.ipynb", (ROOT / "mkdocs.yml").read_text())
    assert len(listed) == len(set(listed)) >= 4
    assert set(listed) == {path.stem for path in TUTORIALS}


@every_tutorial
def test_cells_have_been_executed_in_order_without_errors(path: Path) -> None:
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert {output["output_type"] for output in outputs(path)} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    warnings = [output["text"] for output in outputs(path) if output.get("name") == "stderr"]
    assert warnings == []


@every_tutorial
def test_it_begins_with_a_question_and_ends_with_what_can_go_wrong(path: Path) -> None:
    first, *_, last = cells(path)
    assert first["cell_type"] == last["cell_type"] == "markdown"
    assert re.match(r"# [^\n]+\n\n\*\*Question: [^*]+\?\*\*\n", text(first))
    assert text(last).startswith("## What can go wrong\n")


@every_tutorial
def test_it_shows_pictures_and_is_small(path: Path) -> None:
    pictures = [
        data["image/png"]
        for output in outputs(path)
        if "image/png" in (data := output.get("data", {}))
    ]
    assert len(pictures) >= 3
    assert max(len(picture) * 3 / 4 for picture in pictures) < LARGEST_PICTURE
    assert path.stat().st_size < LARGEST_NOTEBOOK


@every_tutorial
def test_it_holds_nothing_of_the_machine_that_ran_it(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    printed = [
        output.get("text", output.get("data", {}).get("text/plain")) for output in outputs(path)
    ]
    assert not re.search(r"/(home|root|tmp|usr)/", json.dumps(printed))


@every_tutorial
def test_its_links_lead_to_pages(path: Path) -> None:
    links = [
        link
        for cell in cells(path, "markdown")
        for link in re.findall(r"\]\(([^)]+)\)", text(cell))
        if not link.startswith("https://")
    ]
    assert links
    assert all((path.parent / link).is_file() for link in links)


def extension(name: str) -> ModuleType:
    """A module of the documentation's tools, which are no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/extensions/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_a_notebook_become_addresses_of_pages(caplog: pytest.LogCaptureFixture) -> None:
    files_module = pytest.importorskip("mkdocs.structure.files")
    paths = ("guides.md", "tutorials/a.ipynb", "tutorials/b.md")
    files = files_module.Files([files_module.File(path, "docs", "site", True) for path in paths])
    page = SimpleNamespace(file=files.get_file_from_path("tutorials/a.ipynb"))
    hook = extension("notebook_links").on_page_content
    html = '<a href="../guides.md#plates">a</a> <a href="b.md">b</a> <a href="https://c.org/d.md">c</a>'
    replaced = hook(html, page=page, config=None, files=files)
    hrefs = re.findall(r'href="([^"]*)"', replaced)
    assert hrefs == ["../guides/#plates", "b/", "https://c.org/d.md"]
    assert not caplog.records
    hook('<a href="../missing.md">a</a>', page=page, config=None, files=files)
    assert "tutorials/a.ipynb links to ../missing.md, which is no page" in caplog.text
    markdown = SimpleNamespace(file=files.get_file_from_path("tutorials/b.md"))
    assert hook(html, page=markdown, config=None, files=files) == html


@pytest.mark.slow
@every_tutorial
def test_it_runs(path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = extension("tutorials").executed(path)  # raises the error of a cell
    assert [cell["source"] for cell in notebook.cells] == [text(cell) for cell in cells(path)]
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
