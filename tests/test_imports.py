from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_resflow

PACKAGE = Path(pyro_resflow.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

OPTIONAL = (
    "arviz",
    "jax",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "numpyro",
    "safetensors",
    "sklearn",
    "tensorboard",
    "torchvision",
    "xarray",  # comes with arviz
    "zuko",
)
COMES_WITH_PYRO = ("tqdm",)

# What each part of the package may import of the others, itself apart.
FOUNDATION = {
    "arguments",
    "linearization",
    "arnoldi",
    "callers",
    "compilation",
    "differentiation",
    "fingerprints",
    "precision",
    "quadrature",
    "rebuilding",
    "tracing",
    "vmapped",
    "walk",
}
MATHEMATICS = FOUNDATION | {"nn", "logdet", "solvers"}
FLOWS = MATHEMATICS | {"transforms", "distributions", "flows"}
ALLOWED: dict[str, set[str]] = {
    "arguments": set(),
    "differentiation": set(),
    "linearization": {"differentiation", "walk"},
    "arnoldi": {"quadrature"},
    "fingerprints": {"linearization", "precision"},
    "callers": set(),
    "compilation": set(),
    "precision": {"walk"},
    "quadrature": set(),
    "rebuilding": {"arguments"},
    "tracing": set(),
    "vmapped": {"linearization"},
    "walk": set(),
    "extras": set(),
    "nn": {
        "arguments",
        "callers",
        "differentiation",
        "fingerprints",
        "linearization",
        "precision",
        "rebuilding",
        "tracing",
        "walk",
    },
    "logdet": FOUNDATION,
    "solvers": FOUNDATION,
    "transforms": MATHEMATICS,
    "distributions": MATHEMATICS | {"transforms"},
    "flows": MATHEMATICS | {"transforms", "distributions"},
    "guides": FLOWS,
    "classifiers": FLOWS,
    "hybrid": FLOWS,
    "checkpoints": FLOWS,
    "interop": FLOWS | {"guides", "checkpoints", "extras"},
    "plots": FLOWS | {"extras"},
}
WITHOUT_PYRO = FOUNDATION | {"nn", "logdet", "solvers"}


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to; of ``__init__.py``, the package itself."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names of all that a file imports, wherever in the file."""
    package = ("pyro_resflow", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            yield from (".".join((*module, alias.name)) for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    ours = (name.split(".") for name in imports(path) if name.startswith("pyro_resflow."))
    return {name[1] for name in ours}


def file_id(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_all_parts_are_known() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} <= set(ALLOWED)
    assert {"nn", "logdet", "solvers", "transforms", "flows"} <= {part_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    if part != "__init__":
        assert parts_imported(path) <= ALLOWED[part] | {part}


def test_the_rule_sees_relative_and_absolute_imports() -> None:
    assert "rebuilding" in parts_imported(PACKAGE / "nn" / "lipschitz" / "layer.py")
    assert "arnoldi" in parts_imported(PACKAGE / "solvers" / "krylov.py")
    assert parts_imported(PACKAGE / "__init__.py") >= {"flows", "logdet", "transforms"}


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_mathematics_knows_no_pyro(path: Path) -> None:
    names = {name.split(".")[0] for name in imports(path)}
    assert not (part_of(path) in WITHOUT_PYRO and "pyro" in names)
    further = {"interop": {*OPTIONAL, "numpy", *COMES_WITH_PYRO}, "plots": {"matplotlib"}}
    known = {*sys.stdlib_module_names, "torch", "pyro", "pyro_resflow"}
    assert names <= known | further.get(part_of(path), set())


@pytest.mark.parametrize("path", FILES, ids=file_id)
def test_random_numbers_come_from_torch(path: Path) -> None:
    assert not {"random", "secrets"} & {name.split(".")[0] for name in imports(path)}
    assert not [name for name in imports(path) if name.startswith("numpy.random")]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "random":
            assert getattr(node.value, "id", None) not in ("np", "numpy")


def test_package_imports_none_of_its_extras() -> None:
    code = f"""
import sys
import pyro
before = set(sys.modules)
import pyro_resflow
print(sorted({set(OPTIONAL)!r} & (set(sys.modules) - before)))
print(sorted({set(OPTIONAL)!r} & before))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert run.stdout.splitlines() == ["[]", "[]"]


def files_imported(path: Path) -> set[Path]:
    """The package's files that a file imports, wherever in the file."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "pyro_resflow":
            for inside in (parts[1:], parts[1:-1]):  # a module, or a name in one
                module = PACKAGE.joinpath(*inside)
                found |= {module.with_suffix(".py")} & set(FILES)
    return found


def test_no_file_of_the_mathematics_and_the_transforms_is_imported_in_a_circle() -> None:
    """Among imports inside functions too: none is there to break a circle."""
    parts = {"transforms", "logdet", "solvers", "flows", "arnoldi", "linearization"}
    waiting = {path: files_imported(path) for path in FILES if part_of(path) in parts}
    while ready := {path for path, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {path: needs for path, needs in waiting.items() if path not in ready}
    assert waiting == {}
