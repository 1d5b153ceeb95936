"""Files that are there whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file; what stops on the way leaves the one that was there.

    Args:
        path: The file.
        text: All that it is to hold.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
