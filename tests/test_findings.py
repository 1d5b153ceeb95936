"""The scripts in findings/ are all listed, and every listed script exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "findings"
HELPER = "venv.sh"
SCRIPTS = {path.name for path in FOLDER.glob("*.sh")} - {HELPER}
PAGE = (ROOT / "docs/what_differs_elsewhere.md").read_text()


def rows(text: str) -> list[str]:
    """The rows of a page's tables, without headers."""
    return re.findall(r"^\| (?!library)(?!---).*\|$", text, re.MULTILINE)


def test_every_script_has_a_row_and_every_row_a_script() -> None:
    table = rows((FOLDER / "README.md").read_text())
    listed = [re.findall(r"\[(\w+\.sh)\]\((\w+\.sh)\) \|$", row) for row in table]
    assert sorted(listed) == sorted([(name, name)] for name in SCRIPTS)


def test_every_row_of_the_page_ends_with_a_script_that_is_there() -> None:
    table = rows(PAGE)
    named = [re.findall(r"`(\w+\.sh)` \|$", row) for row in table]
    assert len(table) > 20
    assert all(len(names) == 1 and names[0] in SCRIPTS for names in named)


def test_versions_of_the_page_are_those_that_the_scripts_install() -> None:
    for row in rows(PAGE):
        library, version, script = re.findall(r"^\| (\S+) (\S+) .*`(\w+\.sh)` \|$", row)[0]
        package = {"Pyro": "pyro-ppl"}.get(library, library)
        text = (FOLDER / script).read_text()
        assert f"'{package.lower()}=={version}'" in text.lower(), row


def test_every_script_can_be_run_and_says_what_was_seen() -> None:
    assert SCRIPTS
    for name in SCRIPTS:
        text = (FOLDER / name).read_text()
        assert os.access(FOLDER / name, os.X_OK), name
        parts = ("# Behaviour: ", "# One would have guessed: ", "# Output seen:\n#   ")
        assert text.startswith("#!/usr/bin/env bash\n# "), name
        assert all(part in text for part in parts), name
        assert re.search(r"'[\w.\[\]-]+==[\d.]+'", text), name
