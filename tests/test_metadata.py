"""The project page on the package index: its links work there, too."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

import pyro_resflow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECT = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
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


def requirements_of(extra: str) -> Iterator[Requirement]:
    """What an extra installs, with the extras of this package that it names."""
    for line in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for name in requirement.extras:
                yield from requirements_of(name)
        else:
            yield requirement


def lower_bound(requirement: Requirement) -> Version:
    (version,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
    return Version(version)


def test_the_lowest_versions_are_those_that_are_allowed():
    required = [*map(Requirement, PROJECT["dependencies"]), *requirements_of("test")]
    bounds: dict[str, set[Version]] = {}
    for requirement in required:
        bounds.setdefault(requirement.name, set()).add(lower_bound(requirement))
    assert all(len(versions) == 1 for versions in bounds.values()), bounds

    text = (ROOT / "tests/constraints-lowest.txt").read_text()
    named, brought = (
        {r.name: {lower_bound(r)} for r in map(Requirement, re.findall(r"^\w.*$", part, re.M))}
        for part in text.split("\n\n")
    )
    assert named == bounds
    assert not named.keys() & brought.keys()
