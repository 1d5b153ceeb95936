"""The project page on the package index: its links work there, too."""

from __future__ import annotations

import re
from pathlib import Path

import pyro_resflow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
(REPOSITORY,) = re.findall(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com")


def test_links_of_the_readme_are_absolute():
    links = re.findall(r"\]\((.*?)\)", README)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)


def test_links_of_the_readme_into_the_repository_lead_to_files():
    pages = re.findall(rf"{REPOSITORY}/(?:blob|tree)/main/([^)#]+)", README)
    pictures = re.findall(rf"!\[[^]]*\]\({RAW}/main/([^)]+)\)", README)
    assert pages
    assert pictures
    assert len(pictures) == README.count("![")
    assert all((ROOT / path).exists() for path in (*pages, *pictures))


def test_the_citation_names_the_same_version_and_place():
    citation = (ROOT / "CITATION.cff").read_text()
    (version,) = re.findall(r"^version: (.*)$", citation, re.M)
    assert version == pyro_resflow.__version__
    assert f"repository-code: {REPOSITORY}\n" in citation
