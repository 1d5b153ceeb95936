"""Execute the tutorials and write their outputs back, without what differs from run to run.

    python docs/extensions/tutorials.py
    python docs/extensions/tutorials.py vae_with_a_flow_prior

An error in a cell stops the run, and leaves the notebook as it was.
"""

from __future__ import annotations

import os
import resource
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from PIL import Image

TUTORIALS = Path(__file__).parent.parent / "tutorials"

TIMEOUT = 1800
"""Seconds for one cell: far above what a busy machine needs."""

COLOURS = 128
"""Colours of a picture: a colour map and smooth edges of letters need no more."""

ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # pictures in the notebook
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, about widgets that no page shows
}

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs.

    Args:
        path: The notebook's file.

    Raises:
        CellExecutionError: If a cell raises an error.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        ).execute(env={**os.environ, **ENVIRONMENT})
    return stripped(notebook)


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the metadata that every run has in common."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = compressed(output.data["image/png"])
    return notebook


def compressed(picture: str) -> str:
    """A picture with few colours, which takes a third of the space.

    Args:
        picture: PNG in base64.
    """
    image = Image.open(BytesIO(b64decode(picture))).convert("RGB")
    small = BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return b64encode(small.getvalue()).decode()


def processor_seconds() -> float:
    """Processor time of the kernels that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(names: list[str]) -> None:
    """Execute tutorials in place.

    Args:
        names: Their file names without the ending; none for all of them.
    """
    paths = [TUTORIALS / f"{name}.ipynb" for name in names] or sorted(TUTORIALS.glob("*.ipynb"))
    for path in paths:
        before = processor_seconds()
        nbformat.write(executed(path), path)
        print(f"{path.stem}: {processor_seconds() - before:.0f} seconds of processor time")


if __name__ == "__main__":
    main(sys.argv[1:])
